"""Orders that are known beforehand. Same seeds and generators as the reference, so same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer_mq.tasksets.protocol import Source
from explorer_mq.tasksets.selectors.arguments import NoArguments, Stateless, check_count, parse


class Sequential(Stateless):
    """The rows as they come, round and round."""

    def __init__(self, source: Source, *, seed: int, args: Mapping[str, Any]) -> None:
        del seed
        parse(NoArguments, args)
        self._rows = len(source)

    def select(self, position: int, count: int) -> list[int]:
        """The next rows in order."""
        return [number % self._rows for number in range(position, position + count)]


class Shuffle(Stateless):
    """Every row once per epoch, in an order of the epoch's own: seed + epoch."""

    def __init__(self, source: Source, *, seed: int, args: Mapping[str, Any]) -> None:
        parse(NoArguments, args)
        self._rows = len(source)
        self._seed = seed
        self._orders: dict[int, NDArray[np.int64]] = {}

    def select(self, position: int, count: int) -> list[int]:
        """The next rows of the epoch's order, and of the following epochs'."""
        selected: list[int] = []
        while len(selected) < count:
            epoch, start = divmod(position + len(selected), self._rows)
            end = start + count - len(selected)
            selected += self._order(epoch)[start:end].tolist()
        return selected

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Kept for as long as the epoch lasts."""
        if epoch not in self._orders:
            generator = np.random.default_rng(self._seed + epoch)
            self._orders = {epoch: generator.permutation(self._rows)}
        return self._orders[epoch]


class RandomRows(Stateless):
    """Rows drawn anew for each step, none twice in a step: seed + position."""

    def __init__(self, source: Source, *, seed: int, args: Mapping[str, Any]) -> None:
        parse(NoArguments, args)
        self._rows = len(source)
        self._seed = seed

    def select(self, position: int, count: int) -> list[int]:
        """Any ``count`` different rows."""
        check_count(self._rows, count)
        generator = np.random.default_rng(self._seed + position)
        drawn: list[int] = generator.choice(self._rows, count, replace=False).tolist()
        return drawn
