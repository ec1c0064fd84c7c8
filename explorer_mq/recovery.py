"""Rebuilding all state at a start: newest snapshot, the journal after it, then the results."""

from __future__ import annotations

from explorer_mq.batches import Batches
from explorer_mq.bus.connection import Bus
from explorer_mq.bus.journal import Journal
from explorer_mq.bus.objects import get_object
from explorer_mq.core.batch import evolve, open_batch
from explorer_mq.core.snapshot import RunSnapshot, load
from explorer_mq.core.timeouts import TimeoutHistory
from explorer_mq.live import LiveBatch
from explorer_mq_schemas.journal import BatchEntry, Submitting


async def recover(bus: Bus, journal: Journal, batches: Batches, *, window: int) -> int | None:
    """Fill ``batches`` from the journal; returns the result sequence to go on after.

    None: no open batch and no snapshot says where, so it is the stream's end.

    Raises:
        ContractError: snapshot or journal cannot be read.
        NotFound: the snapshot is gone.
    """
    snapshot, entries = await journal.replay()
    starts: list[int] = []
    if snapshot is not None:
        data = await get_object(bus, bus.names.state_stream, snapshot.state)
        batches.restore(load(data, window=window))
        starts.append(snapshot.results_seq)
    else:
        batches.restore(RunSnapshot(history=TimeoutHistory(window=window)))
    for entry in entries:
        _fold(batches, entry)
    if snapshot is None:
        starts += [live.state.opening.results_seq for live in batches.open()]
    return min(starts, default=None)


def _fold(batches: Batches, entry: BatchEntry) -> None:
    if isinstance(entry, Submitting):
        batches.add(LiveBatch(open_batch(entry)))
        return
    live = batches.find(entry.batch)
    if live is None:
        return
    live.state = evolve(live.state, entry)
    if live.state.outcome is not None:
        batches.settle(live)
