"""Bringing the slices of a batch into the task queue: the first time, after a crash, for a retry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.tasks import TaskQueue
from explorer_mq.bus.topology import ensure_pool
from explorer_mq.core.batch import open_needs
from explorer_mq.core.records import SliceNeed
from explorer_mq.core.state import PublishRetry, RetryQueued
from explorer_mq.live import LiveBatch
from explorer_mq_schemas.subjects import Lane
from explorer_mq_schemas.tasks import Slice, Task


class Queueing:
    """Publishes slices; every call may be repeated, what is queued already is left out."""

    def __init__(self, bus: Bus, queue: TaskQueue, *, lease_s: float) -> None:
        self._bus = bus
        self._queue = queue
        self._lease_s = lease_s
        self._pools: set[str] = set()

    def unknown_pools(self, pools: Iterable[str]) -> bool:
        """Whether :meth:`ensure_pools` has something to do."""
        return not self._pools.issuperset(pools)

    async def ensure_pools(self, pools: Iterable[str]) -> None:
        """Make the consumers from which workers of ``pools`` pull, unless they are known."""
        for pool in sorted(set(pools) - self._pools):
            await ensure_pool(self._bus, pool, lease_s=self._lease_s)
            self._pools.add(pool)

    async def look_up(self, batches: Iterable[LiveBatch]) -> None:
        """Learn which slices are in the queue; those of batches that are not open leave it."""
        queued = await self._queue.queued()
        for live in batches:
            live.queued = queued.pop(live.name, set())
        for name in queued:
            await self._queue.purge(name)

    def note_queued(self, live: LiveBatch) -> None:
        """Retries that a replay asks for again, although the queue holds them."""
        live.apply(RetryQueued(frozenset(live.queued)))

    async def publish_open(self, live: LiveBatch) -> None:
        """Bring every awaited first slice of ``live`` that is not in the queue into it."""
        waiting = {(retry.task, retry.number) for retry in live.state.retries}
        needs = [
            (task, need)
            for task, need in open_needs(live.state)
            if (task, need.number) not in live.queued and (task, need.number) not in waiting
        ]
        await self._publish(live, needs, Lane.NORMAL)
        live.forget_tasks()

    async def publish_retries(self, live: LiveBatch, retries: Sequence[PublishRetry]) -> None:
        """Queue missing runs ahead of other work."""
        needs = [(retry.task, retry.need) for retry in retries]
        await self._publish(live, needs, Lane.URGENT)
        live.apply(RetryQueued(frozenset((task, need.number) for task, need in needs)))

    async def purge(self, live: LiveBatch) -> None:
        """Take every slice of ``live`` out of the queue, also those under a lease."""
        await self._queue.purge(live.name)

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
                stall_timeout_s=opening.stall_timeout_s,
                lane=lane,
            )
            for task, need in needs
        ]
        await self.ensure_pools(one.task.pool for one in slices)
        await self._queue.publish(slices)
        live.queued.update((task, need.number) for task, need in needs)
