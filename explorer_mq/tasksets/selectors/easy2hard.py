"""A curriculum known beforehand: from the easiest row to the hardest, and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from explorer_mq.settings.section import Section
from explorer_mq.tasksets.protocol import Source
from explorer_mq.tasksets.selectors.arguments import Stateless, features, parse


class OfflineArguments(Section):
    """Arguments of ``offline_easy2hard``."""

    feature_keys: tuple[str, ...] = Field(
        min_length=1, description="keys of numbers that are higher for easier rows"
    )


class OfflineEasy2Hard(Stateless):
    """Rows by their features, highest first; the first key counts most, equal rows last one first."""

    def __init__(self, source: Source, *, seed: int, args: Mapping[str, Any]) -> None:
        del seed
        keys = parse(OfflineArguments, args).feature_keys
        columns = features(source, keys).T
        # lexsort counts its last key most; it is stable, so reversed equal rows are too
        self._order = np.lexsort(columns[::-1])[::-1].astype(np.int64)

    def select(self, position: int, count: int) -> list[int]:
        """The next rows of the curriculum."""
        numbers = np.arange(position, position + count) % len(self._order)
        selected: list[int] = self._order[numbers].tolist()
        return selected
