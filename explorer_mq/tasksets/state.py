"""What a scheduler saves, and whether another one can go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from explorer_mq.settings.section import Section
from explorer_mq_schemas.errors import ConfigError
from explorer_mq_schemas.messages import first_fault


class SavedSet(Section):
    """One set: what its order depends on, and what its selector has learned."""

    name: str
    rows: int
    selector: str
    seed: int
    state: dict[str, Any]


class Saved(Section):
    """A scheduler's state; ``step`` is the next one to be read."""

    version: Literal[1] = 1
    step: int = Field(ge=0)
    batch_size: int
    tasksets: tuple[SavedSet, ...]

    @classmethod
    def parse(cls, state: Mapping[str, Any]) -> Self:
        """The state that was saved as JSON.

        Raises:
            ConfigError: it is something else.
        """
        try:
            return cls.model_validate(dict(state))
        except ValidationError as error:
            raise ConfigError(f"the tasksets' saved state: {first_fault(error)}") from error


def check_continues(saved: Saved, now: Saved) -> None:
    """Whether the rows go on as they would have.

    Raises:
        ConfigError: other sets, rows, selectors, seeds or another batch size; names what changed.
    """
    names = [entry.name for entry in saved.tasksets]
    _check_same("the list of tasksets", names, [entry.name for entry in now.tasksets])
    _check_same("batch_size", saved.batch_size, now.batch_size)
    for before, after in zip(saved.tasksets, now.tasksets, strict=True):
        where = f"taskset {before.name!r}: "
        _check_same(f"{where}the number of rows", before.rows, after.rows)
        _check_same(f"{where}selector", before.selector, after.selector)
        _check_same(f"{where}seed", before.seed, after.seed)


def _check_same(what: str, before: object, now: object) -> None:
    if before != now:
        raise ConfigError(
            f"{what} changed from {before!r} to {now!r} since the state was saved, so the rows "
            "cannot go on in their order; undo the change, or start a new run"
        )
