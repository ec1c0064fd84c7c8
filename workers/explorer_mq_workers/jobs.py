"""The slices a worker has in work, each in a numbered slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from explorer_mq.bus.leases import Lease
from explorer_mq.crew import Pulse
from explorer_mq_schemas.beats import Claim, RunningSlice
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_schemas.tasks import Slice
from explorer_mq_workers.activity import Activity

StopReason = Literal["cancelled", "drained"]


@dataclass(slots=True, eq=False)
class Job:
    """A slice in work.

    ``attempt`` is 0 until it is known, which takes a look at the slice's history when it was given
    out before; ``excused`` counts the deliveries so far that use no attempt. ``stop`` says why it
    was told to stop, if it was. ``is_settled``: its lease is not ours to settle any more.
    """

    lease: Lease
    one: Slice
    slot: int
    activity: Activity
    task: asyncio.Task[None]
    attempt: int = 0
    excused: int = 0
    stop: StopReason | None = None
    is_settled: bool = False
    in_attempt: bool = False
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float = field(default_factory=time.time)

    def tell_to_stop(self, reason: StopReason) -> None:
        """End the attempt; of a cancelled slice not even the report is wanted any more."""
        if self.stop is not None:
            return
        self.stop = reason
        self.stopped.set()
        if reason == "cancelled" and not self.in_attempt:
            self.task.cancel()

    def claim(self) -> Claim:
        """That this worker has the slice."""
        return Claim(
            batch=self.one.batch,
            task=self.one.task_number,
            slice=self.one.number,
            attempt=self.attempt,
            lease=self.lease.ack_subject,
        )

    def running(self) -> RunningSlice:
        """What the slice is doing. A lost lease is not shown: it may be another worker's by now."""
        self.activity.look()
        return RunningSlice(
            batch=self.one.batch,
            task=self.one.task_number,
            slice=self.one.number,
            attempt=self.attempt,
            started_at=self.started_at,
            slot=self.slot,
            lease="" if self.lease.is_lost else self.lease.ack_subject,
            calls=self.activity.calls,
            tokens=self.activity.tokens,
            progress_at=self.activity.progress_at,
            state=self.activity.state(),
        )


class Jobs:
    """All slices in work; there are never more than the worker has slots."""

    def __init__(self) -> None:
        self._by_slot: dict[int, Job] = {}
        self.finished = 0
        """Slices that are out of work again, whatever came of them."""
        self.changed = Pulse()

    def __len__(self) -> int:
        return len(self._by_slot)

    def __iter__(self) -> Iterator[Job]:
        return iter(sorted(self._by_slot.values(), key=lambda job: job.slot))

    def open(self, lease: Lease, one: Slice, activity: Activity) -> Job:
        """Put a slice to work in the lowest free slot; the current task works on it."""
        task = asyncio.current_task()
        assert task is not None
        slot = next(slot for slot in range(len(self) + 1) if slot not in self._by_slot)
        job = self._by_slot[slot] = Job(lease, one, slot, activity, task)
        self.changed.beat()
        return job

    def close(self, job: Job) -> None:
        """Free the slot."""
        del self._by_slot[job.slot]
        self.finished += 1
        self.changed.beat()

    def find(self, key: SliceKey) -> Job | None:
        """The job that still works for a result of this slice."""
        for job in self._by_slot.values():
            if job.one.key == key and job.stop is None and not job.is_settled:
                return job
        return None
