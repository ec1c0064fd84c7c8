"""A batch in memory: its state, who waits for it, and its tasks while they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.objects import get_object
from explorer_mq.core.batch import evolve
from explorer_mq.core.state import BatchState, Event
from explorer_mq.crew import Pulse


class LiveBatch:
    """One open batch, or one that was closed a short while ago.

    ``failure`` is the last error of carrying out an effect; ``queued`` holds slices, by task and
    number, known to be in the queue or published since; ``collected`` tasks whose results the
    scheduler's caller has taken; ``waiters`` counts who waits for it to close. ``requeue``: a crash
    may have kept slices from the queue. None of these outlives the process.
    """

    def __init__(self, state: BatchState, tasks: Sequence[bytes] | None = None) -> None:
        self.state = state
        self.changed = Pulse()
        self.failure: BaseException | None = None
        self.queued: set[tuple[int, int]] = set()
        self.collected: set[int] = set()
        self.waiters = 0
        self.requeue = False
        self.lock = asyncio.Lock()
        self._tasks = tasks
        self._enough: dict[int, float] = {}

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

    def enough_since(self, target: int, now: float) -> float:
        """When ``target`` settled tasks were first seen, Unix time."""
        return self._enough.setdefault(target, now)

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
