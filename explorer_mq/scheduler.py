"""The scheduler: folds the result stream into batch states and keeps the task queue filled.

Flow: :meth:`Scheduler.start` -> follow results -> ``evolve`` per result -> the batch's
:class:`LiveBatch` pulses -> whoever drives the batch asks ``decide`` what is due.

It holds no truth of its own: every state is the fold of the journal (given by the coordinator) and
of the result stream, so it can be thrown away at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Follower, Received
from explorer_mq.bus.objects import get_object
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.tasks import TaskQueue
from explorer_mq.core.batch import (
    BatchState,
    Event,
    LateRemoved,
    ResultArrived,
    evolve,
    open_needs,
)
from explorer_mq.core.records import Report, SliceNeed
from explorer_mq.crew import Crew, Pulse
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.results import Result
from explorer_mq_schemas.subjects import Lane, SliceKey
from explorer_mq_schemas.tasks import Slice, Task

logger = logging.getLogger(__name__)

REMEMBERED_CLOSED = 1000
"""Closed batches whose late results are still recognised; older ones are left to retention."""


class LiveBatch:
    """One batch in memory: its state, who waits for it, and its tasks while they are needed.

    ``failure`` is the last error of carrying out an effect; ``queued`` holds slices known to be in
    the queue or published since.
    """

    def __init__(self, state: BatchState, tasks: Sequence[bytes] | None = None) -> None:
        self.state = state
        self.changed = Pulse()
        self.failure: BaseException | None = None
        self.queued: set[tuple[int, int]] = set()
        self.lock = asyncio.Lock()
        self._tasks = tasks

    @property
    def name(self) -> str:
        """The batch id as text."""
        return str(self.state.batch)

    def apply(self, event: Event) -> None:
        """Fold ``event`` and wake the waiters if it changed anything."""
        state = evolve(self.state, event)
        if state is not self.state:
            self.state = state
            self.changed.beat()

    async def tasks(self, bus: Bus) -> Sequence[bytes]:
        """The encoded tasks in order, read back from where the journal says they are."""
        if self._tasks is None:
            opening = self.state.opening
            if opening.tasks is not None:
                text = await get_object(bus, bus.names.results_stream, opening.tasks)
                self._tasks = bytes(text).split(b"\n")
            else:
                self._tasks = opening.inline.encode().split(b"\n")
        return self._tasks

    def forget_tasks(self) -> None:
        """Free the tasks; they are read back when a retry needs one."""
        self._tasks = None


class Scheduler:
    """Shell of the fold: one result follower for all batches of a run."""

    def __init__(self, bus: Bus, queue: TaskQueue, results: ResultLog) -> None:
        self._bus = bus
        self._queue = queue
        self._results = results
        self._live: dict[str, LiveBatch] = {}
        self._closed: OrderedDict[str, LiveBatch] = OrderedDict()
        self._follower: Follower | None = None
        self.malformed_results = 0

    async def start(self, batches: Iterable[BatchState], crew: Crew) -> None:
        """Take over ``batches`` and fold everything the result stream holds for them.

        The queue is listed before the results: a slice leaves the queue only after its result is
        stored, so one of the two shows every slice.
        """
        for state in batches:
            live = LiveBatch(state)
            self.add(live)
            if state.outcome is not None:
                self.drop(live)
                continue
            queued = await self._queue.queued(live.name)
            live.queued = {(key.task, key.slice) for key in queued}
        start = [live.state.opening.results_seq for live in self._live.values()]
        first = min(start) if start else await self._results.last_seq()
        self._follower = self._results.follow(first + 1)
        await self._follower.start()
        self._fold(await self._follower.catch_up())
        crew.start(self._follow(self._follower), name="scheduler results")

    async def close(self) -> None:
        """Stop following."""
        if self._follower is not None:
            await self._follower.close()
            self._follower = None

    def batches(self) -> list[LiveBatch]:
        """Open batches in order of submission."""
        return list(self._live.values())

    def find(self, batch: int | str) -> LiveBatch | None:
        """The open batch of that id."""
        return self._live.get(str(batch))

    def add(self, live: LiveBatch) -> None:
        """Fold results for ``live`` from now on."""
        self._live[live.name] = live

    def drop(self, live: LiveBatch) -> None:
        """Put away a batch that is over; results that still come for it are late."""
        self._live.pop(live.name, None)
        if live.state.outcome is not None:
            self._closed[live.name] = live
            while len(self._closed) > REMEMBERED_CLOSED:
                self._closed.popitem(last=False)

    async def publish_open(self, live: LiveBatch) -> None:
        """Bring every awaited slice of ``live`` that is not in the queue into it."""
        needs = [
            (task, need)
            for task, need in open_needs(live.state)
            if (task, need.number) not in live.queued
        ]
        await self._publish(live, needs, Lane.NORMAL)
        live.forget_tasks()

    async def publish_retry(self, live: LiveBatch, task: int, need: SliceNeed) -> None:
        """Queue the missing runs of ``task`` ahead of other work, once."""
        if (task, need.number) not in live.queued:
            await self._publish(live, [(task, need)], Lane.URGENT)

    async def remove_late(self, live: LiveBatch) -> None:
        """Delete the late results of ``live`` and say so."""
        seqs = live.state.late
        for seq in sorted(seqs):
            await self._results.delete(seq)
        logger.info("batch=%s removed %d late results", live.name, len(seqs))
        live.apply(LateRemoved(seqs))

    async def _publish(
        self, live: LiveBatch, needs: Sequence[tuple[int, SliceNeed]], lane: Lane
    ) -> None:
        if not needs:
            return
        lines = await live.tasks(self._bus)
        opening = live.state.opening
        slices = [
            Slice(
                batch=live.name,
                task_number=task,
                number=need.number,
                run_ids=need.run_ids,
                task=Task.decode(lines[task]),
                max_attempts=opening.max_attempts,
                attempts_used=need.attempts_used,
                timeout_s=opening.timeout_s,
                lane=lane,
            )
            for task, need in needs
        ]
        await self._queue.publish(slices)
        live.queued.update((task, need.number) for task, need in needs)

    async def _follow(self, follower: Follower) -> None:
        while True:
            self._fold(await follower.next_batch())
            for live in list(self._closed.values()):
                if live.state.late:
                    await self.remove_late(live)

    def _fold(self, received: Sequence[Received]) -> None:
        for message in received:
            try:
                key, report = self._results.parse(message)
            except ContractError as error:
                self.malformed_results += 1
                logger.warning("result seq=%d ignored: %s", message.seq, error)
                continue
            if isinstance(report, Result):
                self._fold_result(key, report, message)

    def _fold_result(self, key: SliceKey, result: Result, message: Received) -> None:
        live = self._live.get(key.batch) or self._closed.get(key.batch)
        if live is not None:
            report = Report.of(key.slice, message.seq, result)
            live.apply(ResultArrived(key.task, report, message.time_s))
