"""The first rows of another source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from explorer_mq.tasksets.protocol import Defaults, Row, Source

_CHUNK = 1024
"""Rows in memory at once while a column is read."""


class FirstRows:
    """A source cut off after ``count`` rows."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._count = count

    @property
    def defaults(self) -> Defaults:
        """Those of the source."""
        return self._source.defaults

    def __len__(self) -> int:
        return self._count

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """As the source's."""
        return self._source.rows(numbers)

    def column(self, key: str) -> list[Any]:
        """As the source's, cut off; the rows are read, for a source may have no columns."""
        starts = range(0, self._count, _CHUNK)
        chunks = (range(start, min(start + _CHUNK, self._count)) for start in starts)
        return [row.get(key) for chunk in chunks for row in self.rows(chunk)]

    def where(self, number: int) -> str:
        """As the source's."""
        return self._source.where(number)
