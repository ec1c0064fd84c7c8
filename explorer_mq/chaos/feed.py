"""What the run does, as seen from outside: accepted results, and how long each fault held things up.

A kill's recovery is the time until the first progress, after it, of what the killed process is for:

    worker, server      an accepted result
    coordinator         a journal entry that takes a batch further
    trainer             a training batch received by that trainer
    everything          a batch finalized

Kills whose progress never came because all work was done are not counted; where work was left, it
shows as a stall.
"""

from __future__ import annotations

import time
from collections import defaultdict
from enum import StrEnum

import orjson

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Follower, Received
from explorer_mq.bus.results import parse_report
from explorer_mq.chaos.audit import Accepted
from explorer_mq.crew import Pulse
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.results import Result

_DECISIONS = ("running", "finalizing", "finalized", "aborted")


class Progress(StrEnum):
    """What a kill may hold up."""

    RESULT = "result"
    DECISION = "decision"
    CLOSED = "closed"
    TRAINER = "trainer"


class Recoveries:
    """Times from kills to the next progress."""

    def __init__(self) -> None:
        self._open: dict[Progress, list[float]] = defaultdict(list)
        self.seconds: list[float] = []

    def begin(self, wanted: Progress) -> None:
        """A kill has just held up ``wanted``."""
        self._open[wanted].append(time.monotonic())

    def note(self, progress: Progress) -> None:
        """There was progress; it ends every wait for it."""
        now = time.monotonic()
        self.seconds.extend(now - began for began in self._open.pop(progress, ()))

    @property
    def p50(self) -> float:
        """The median; 0 without any."""
        ordered = sorted(self.seconds)
        return ordered[len(ordered) // 2] if ordered else 0.0

    @property
    def longest(self) -> float:
        """The longest; 0 without any."""
        return max(self.seconds, default=0.0)


class Feed:
    """Follows results and journal; ``changed`` beats on every progress."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.accepted: dict[int, Accepted] = {}
        self.malformed: list[str] = []
        self.recoveries = Recoveries()
        self.changed = Pulse()

    async def follow_results(self) -> None:
        """Collect what the result stream accepts, until cancelled."""
        names = self._bus.names
        log = Follower(self._bus, names.results_stream, [names.all_results], headers_only=True)
        async with log:
            while True:
                for message in await log.next_batch():
                    self._take(message)
                self.note(Progress.RESULT)

    async def follow_journal(self) -> None:
        """See the coordinator decide, until cancelled."""
        names = self._bus.names
        async with Follower(self._bus, names.journal_stream, [names.journal]) as log:
            while True:
                for message in await log.next_batch():
                    entry = orjson.loads(message.data).get("entry")
                    if entry in _DECISIONS:
                        self.note(Progress.DECISION)
                    if entry == "finalized":
                        self.note(Progress.CLOSED)

    def note(self, progress: Progress) -> None:
        """Something went on."""
        self.recoveries.note(progress)
        self.changed.beat()

    def _take(self, message: Received) -> None:
        try:
            key, result = parse_report(self._bus.names, message)
        except ContractError as error:
            self.malformed.append(str(error))
            return
        if isinstance(result, Result):
            self.accepted[message.seq] = Accepted(
                key.batch, key.task, key.slice, message.seq, result.experiences
            )
