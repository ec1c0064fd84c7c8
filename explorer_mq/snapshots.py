"""Snapshots of all state, so that a restart does not read the whole age of a run.

Order: state into the bucket, then the entry into the journal, then the old entries and the old
state go. A crash in between leaves the older snapshot in force, or one object too many.
"""

from __future__ import annotations

import asyncio
import logging

from explorer_mq.batches import Batches
from explorer_mq.bus.objects import put_object
from explorer_mq.bus.state import RunState
from explorer_mq.core.snapshot import dump
from explorer_mq.crew import Pulse
from explorer_mq.steps import Step, Steps
from explorer_mq.streams import RunStreams
from explorer_mq_schemas.errors import FencedError, TransientError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.journal import Snapshot

logger = logging.getLogger(__name__)

_KEY = "snapshot"


class Snapshots:
    """Takes a snapshot whenever enough has happened since the last.

    Enough is ``every`` results and decisions, but at least a quarter of what the snapshot would
    hold: the cost per result stays constant however large a batch is.
    """

    def __init__(self, streams: RunStreams, batches: Batches, steps: Steps, *, every: int) -> None:
        self._bus = streams.bus
        self._publisher = streams.publisher
        self._journal = streams.journal
        self._batches = batches
        self._steps = steps
        self._every = every
        self._since = 0
        self._due = Pulse()
        self.results_seq = 0
        """Last sequence of the result stream that is folded into the batches."""

    def count(self, events: int) -> None:
        """``events`` more results or decisions."""
        self._since += events
        if self._since >= self._every:
            self._due.beat()

    async def run(self) -> None:
        """Take snapshots until cancelled.

        Raises:
            FencedError: another coordinator leads now.
        """
        while True:
            if self._since < max(self._every, self._size() // 4):
                await self._due.wait()
                continue
            try:
                await self.take()
            except FencedError:
                raise
            except TransientError as error:
                logger.warning("no snapshot now: %s", error)
                await self._due.wait()

    async def take(self) -> Snapshot:
        """Store a snapshot of this moment and trim the journal.

        Raises:
            FencedError: another coordinator leads now.
            TransientError: the server is away; the older snapshot stays in force.
        """
        journal_seq, results_seq = self._journal.last_seq, self.results_seq
        frozen = self._batches.snapshot()
        self._since = 0
        data = await asyncio.to_thread(dump, frozen)
        name = new_id("s")
        prefix = self._bus.names.state(_KEY, name)
        state = await put_object(self._publisher, prefix, data)
        self._steps.reached(Step.SNAPSHOT_STORED)
        entry = Snapshot(state=state, journal_seq=journal_seq, results_seq=results_seq)
        await self._journal.append(entry)
        self._steps.reached(Step.SNAPSHOT_JOURNALLED)
        await self._journal.trim(entry)
        self._steps.reached(Step.JOURNAL_TRIMMED)
        await self._forget_others(name)
        logger.info("snapshot of %d bytes, journal trimmed to %d", len(data), journal_seq + 1)
        return entry

    async def _forget_others(self, name: str) -> None:
        names = self._bus.names
        info = await self._bus.api(
            f"STREAM.INFO.{names.state_stream}",
            {"subjects_filter": f"{names.state(_KEY)}.>"},
        )
        subjects = info["state"].get("subjects") or {}
        for other in {subject.split(".")[-2] for subject in subjects} - {name}:
            await RunState(self._bus).remove(_KEY, other)

    def _size(self) -> int:
        reports = sum(
            record.finished_sub_task_num
            for live in self._batches.open()
            for _, record in live.state.tasks.items()
        )
        return reports + 10 * len(self._batches.closed())
