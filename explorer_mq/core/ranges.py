"""Sets of sequence numbers as sorted inclusive ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Ranges = tuple[tuple[int, int], ...]


def to_ranges(numbers: Iterable[int]) -> Ranges:
    """The fewest inclusive ranges that hold exactly ``numbers``."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] + 1 == number:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def union(*parts: Sequence[tuple[int, int]]) -> Ranges:
    """The fewest inclusive ranges that hold what any of ``parts`` holds."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(bounds for part in parts for bounds in part):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def contains(ranges: Sequence[tuple[int, int]], number: int) -> bool:
    """Whether one of the sorted ``ranges`` holds ``number``."""
    place = bisect_right(ranges, number, key=lambda bounds: bounds[0]) - 1
    return place >= 0 and number <= ranges[place][1]
