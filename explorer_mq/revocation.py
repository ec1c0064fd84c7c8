"""Handing back the slices of workers that are gone or do not answer.

The lease is the guarantee; this only makes the next attempt start seconds earlier. A worker counts
as gone when its connection has ended and it has not been heard again within the time of grace.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from explorer_mq.bus.connection import Bus, Subscription
from explorer_mq.bus.disconnects import watch_disconnects
from explorer_mq.bus.results import ResultLog
from explorer_mq.crew import Crew
from explorer_mq.roster import Roster, RunnerWrapper
from explorer_mq_schemas.beats import Claim
from explorer_mq_schemas.errors import TransientError
from explorer_mq_schemas.events import Event, EventKind
from explorer_mq_schemas.results import Attempt
from explorer_mq_schemas.subjects import SliceKey

logger = logging.getLogger(__name__)

Tell = Callable[[Event], Awaitable[None]]


class Revocation:
    """Watches for lost workers and gives their slices to others."""

    def __init__(
        self, bus: Bus, roster: Roster, results: ResultLog, tell: Tell, *, grace_s: float
    ) -> None:
        self._bus = bus
        self._roster = roster
        self._results = results
        self._tell = tell
        self._grace_s = grace_s
        self._crew: Crew | None = None
        self._subscription: Subscription | None = None

    async def start(self, crew: Crew) -> None:
        """Listen to the server's disconnect events."""
        self._crew = crew
        self._subscription = await watch_disconnects(self._bus, self._hear)

    async def close(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    async def revoke(self, runner: RunnerWrapper, kind: EventKind, why: str) -> None:
        """Hand back every slice ``runner`` holds, with a record of the attempt that was lost."""
        leases = list(runner.leases.values())
        runner.leases.clear()
        for claim in leases:
            await self._hand_back(runner.worker, claim, why)
        text = f"worker {runner.worker} {why}; {len(leases)} slices handed back"
        logger.warning("%s", text)
        await self._tell(Event(kind=kind, at=self._bus.now(), text=text, worker=runner.worker))

    def _hear(self, connection: str) -> None:
        parsed = self._bus.names.parse_connection(connection)
        if self._crew is not None and parsed is not None and parsed[0] == "worker":
            self._crew.start(self._await_return(parsed[1]), name=f"grace of worker {parsed[1]}")

    async def _await_return(self, worker: str) -> None:
        runner = self._roster.find(worker)
        if runner is None:
            return
        left_at = self._bus.now()
        end = left_at + self._grace_s
        while (now := self._bus.now()) < end and not _sent_since(runner, left_at):
            await self._roster.changed.wait(end - now)
        if not _sent_since(runner, left_at) and self._roster.find(worker) is runner:
            self._roster.remove(worker)
            await self.revoke(runner, "worker_lost", "lost its connection and did not come back")

    async def _hand_back(self, worker: str, claim: Claim, why: str) -> None:
        key = SliceKey(claim.batch, claim.task, claim.slice)
        record = Attempt(worker=worker, attempt=claim.attempt, seconds=0.0, end="lost")
        try:
            await self._results.publish_attempt(key, record)
            await self._bus.publish(claim.lease, b"-NAK")
        except TransientError as error:
            logger.warning(
                "slice=%s of worker %s (%s) not handed back: %s", key, worker, why, error
            )


def _sent_since(runner: RunnerWrapper, at: float) -> bool:
    """Judged by when the beat was sent: one that was on its way may be heard after the event."""
    return runner.beat is not None and runner.beat.sent_at > at
