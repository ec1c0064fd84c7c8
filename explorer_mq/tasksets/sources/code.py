"""Rows from the user's own code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from explorer_mq import plugins
from explorer_mq.tasksets.protocol import Defaults, Row
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq_schemas.errors import ConfigError


class CodeSource:
    """``module:attr``: an iterable of rows, or a callable that gives one (``options`` its arguments).

    What has ``len()`` and ``[number]`` is asked row by row. Any other iterable is read to its end,
    or to ``max_rows``: an endless one needs that setting.
    """

    defaults = Defaults()

    def __init__(self, settings: TasksetSettings, group: str) -> None:
        self._title = f"taskset {settings.name!r} ({settings.path})"
        found = plugins.load(settings.path, group)
        try:
            if callable(found):
                found = found(**settings.options)
            elif settings.options:
                raise ConfigError("it is no callable and takes no options; drop the setting")
            self._rows = _indexed(found, settings.max_rows)
        except ConfigError as error:
            raise ConfigError(f"{self._title}: {error}") from error
        except Exception as error:  # the user's own code
            raise ConfigError(f"{self._title}: {type(error).__name__}: {error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows with these numbers."""
        return [self._row(number) for number in numbers]

    def column(self, key: str) -> list[Any]:
        """The value of ``key`` in every row."""
        return [self._row(number).get(key) for number in range(len(self))]

    def where(self, number: int) -> str:
        """Set and row."""
        return f"{self._title} row {number}"

    def _row(self, number: int) -> Row:
        try:
            row = self._rows[number]
        except Exception as error:  # the user's own code
            raise ConfigError(f"{self.where(number)}: {type(error).__name__}: {error}") from error
        if not isinstance(row, Mapping):
            raise ConfigError(
                f"{self.where(number)} is {type(row).__name__}; a row must be a mapping"
            )
        return dict(row)


def _indexed(found: Any, max_rows: int | None) -> Sequence[Any]:
    if not isinstance(found, (str, bytes, Mapping)):
        if hasattr(found, "__len__") and hasattr(found, "__getitem__"):
            rows: Sequence[Any] = found
            return rows
        if isinstance(found, Iterable):
            return list(islice(found, max_rows))
    raise ConfigError(f"it gives {type(found).__name__}; expected an iterable of rows")
