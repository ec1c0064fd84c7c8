"""Which set each entry of a step comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Draw:
    """``count`` rows of one set, of which ``position`` were taken before."""

    taskset_id: int
    position: int
    count: int


class Mixture:
    """An endless list of set ids: per epoch one entry for each row, shuffled by the epoch number.

    Same shuffle as the reference's, so a mix of the same sizes gives the same order.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = np.array(sizes, np.int64)
        self.rows_per_epoch = int(self._sizes.sum())
        self._orders: dict[int, NDArray[np.int32]] = {}

    def draws(self, start: int, count: int) -> list[Draw]:
        """What entries ``start`` to ``start + count - 1`` take, sets by their first appearance."""
        taken: dict[int, int] = {}
        for ids in self._pieces(start, count):
            found, first, counts = np.unique(ids, return_index=True, return_counts=True)
            for at in np.argsort(first):
                taskset_id = int(found[at])
                taken[taskset_id] = taken.get(taskset_id, 0) + int(counts[at])
        before = self._taken_before(start)
        return [Draw(id_, int(before[id_]), count) for id_, count in taken.items()]

    def _pieces(self, start: int, count: int) -> Iterator[NDArray[np.int32]]:
        """The entries, cut where epochs end."""
        while count > 0:
            epoch, offset = divmod(start, self.rows_per_epoch)
            piece = self._order(epoch)[offset : offset + count]
            yield piece
            start += len(piece)
            count -= len(piece)

    def _taken_before(self, start: int) -> NDArray[np.int64]:
        """How many rows of each set the entries before ``start`` took."""
        epoch, offset = divmod(start, self.rows_per_epoch)
        part = np.bincount(self._order(epoch)[:offset], minlength=len(self._sizes))
        taken: NDArray[np.int64] = epoch * self._sizes + part
        return taken

    def _order(self, epoch: int) -> NDArray[np.int32]:
        """The epoch's entries; two epochs are kept, for a step may lie in both."""
        if epoch not in self._orders:
            ids = np.repeat(np.arange(len(self._sizes), dtype=np.int32), self._sizes)
            if len(self._sizes) > 1:
                np.random.default_rng(epoch).shuffle(ids)
            kept = {epoch - 1, epoch + 1} & self._orders.keys()
            self._orders = {other: self._orders[other] for other in kept} | {epoch: ids}
        return self._orders[epoch]
