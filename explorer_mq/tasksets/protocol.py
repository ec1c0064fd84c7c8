"""What a source of rows and a selector of rows are; custom ones follow the same two protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a kind of source knows about its rows; settings of the set have precedence."""

    workflow: str | None = None
    reward_fn: str | None = None
    reward_fn_args: Mapping[str, Any] = field(default_factory=dict)
    format_args: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Rows by number; the number of rows is known, the rows are read when they are asked for."""

    @property
    def defaults(self) -> Defaults:
        """Format, workflow and reward that fit these rows."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows with these numbers (from 0), in the order asked for.

        Raises:
            ConfigError: a row cannot be read or is no JSON object; says where it is.
        """
        ...

    def column(self, key: str) -> list[Any]:
        """The value of ``key`` in every row; None where there is none."""
        ...

    def where(self, number: int) -> str:
        """Where row ``number`` is, for messages: file and line, or set and row."""
        ...


class Selector(Protocol):
    """Which rows of one set come next.

    Built by ``factory(source, *, seed, args)``, with ``selector_args`` as ``args``. It keeps no
    position: :meth:`select` is told, and gives the same rows for the same position and state.
    """

    def select(self, position: int, count: int) -> list[int]:
        """Numbers of the next ``count`` rows, of which ``position`` were taken before.

        Raises:
            ConfigError: the set cannot give that many.
        """
        ...

    def feedback(self, numbers: Sequence[int], values: Sequence[float]) -> None:
        """Take note of the mean rewards (``values``) of rows; the scheduler has checked both."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that feedback has changed, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ConfigError: it is not this selector's state, or not of this set.
        """
        ...
