"""A persistent array: each change yields a new table that shares all but one block with the old.

Copying a whole table per event would make a batch of n tasks cost O(n²); copying one block of 64
and the list of blocks keeps an event at about a microsecond up to 100,000 entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """``size`` entries, all ``None`` at first."""

    size: int
    _blocks: tuple[tuple[T | None, ...] | None, ...]

    @classmethod
    def empty(cls, size: int) -> Table[T]:
        """A table without entries."""
        return cls(size, (None,) * -(-size // _BLOCK))

    @classmethod
    def of(cls, size: int, entries: Mapping[int, T]) -> Table[T]:
        """A table with these entries by index, made at once."""
        blocks: list[list[T | None] | None] = [None] * -(-size // _BLOCK)
        for index, value in entries.items():
            which, place = divmod(index, _BLOCK)
            block = blocks[which]
            if block is None:
                block = blocks[which] = [None] * _BLOCK
            block[place] = value
        return cls(size, tuple(None if block is None else tuple(block) for block in blocks))

    def get(self, index: int) -> T | None:
        """Entry ``index``, None where nothing was set.

        Raises:
            IndexError: the table has no such place.
        """
        if not 0 <= index < self.size:
            raise IndexError(index)
        block = self._blocks[index // _BLOCK]
        return None if block is None else block[index % _BLOCK]

    def set(self, index: int, value: T | None) -> Table[T]:
        """The table with entry ``index`` replaced.

        Raises:
            IndexError: the table has no such place.
        """
        if not 0 <= index < self.size:
            raise IndexError(index)
        which, place = divmod(index, _BLOCK)
        block = self._blocks[which] or (None,) * _BLOCK
        changed = (*block[:place], value, *block[place + 1 :])
        return Table(self.size, (*self._blocks[:which], changed, *self._blocks[which + 1 :]))

    def items(self) -> Iterator[tuple[int, T]]:
        """Index and entry of every place that was set, in order."""
        for which, block in enumerate(self._blocks):
            if block is None:
                continue
            for place, value in enumerate(block):
                if value is not None:
                    yield which * _BLOCK + place, value
