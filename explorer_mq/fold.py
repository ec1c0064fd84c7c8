"""The result stream, folded into batch states as it grows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from explorer_mq.batches import Batches
from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Follower, Received
from explorer_mq.bus.results import ResultLog
from explorer_mq.core.records import Report
from explorer_mq.core.state import ResultArrived
from explorer_mq.live import LiveBatch
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.results import Attempt, Result
from explorer_mq_schemas.subjects import SliceKey

logger = logging.getLogger(__name__)


class ResultFold:
    """One follower of result headers for all batches of a run; payloads are never read.

    ``settle`` is called with each result that was folded. ``attempts`` counts attempts that ended
    without a result, by how they ended.
    """

    def __init__(
        self,
        bus: Bus,
        results: ResultLog,
        batches: Batches,
        settle: Callable[[SliceKey, Report], None],
    ) -> None:
        self._bus = bus
        self._results = results
        self._batches = batches
        self._settle = settle
        self._follower: Follower | None = None
        self.last_seq = 0
        self.malformed = 0
        self.attempts: dict[str, int] = {}

    async def start(self, after_seq: int | None) -> None:
        """Fold everything that is stored after ``after_seq``; None: nothing before now matters."""
        first = await self._results.last_seq() if after_seq is None else after_seq
        self.last_seq = first
        self._follower = self._results.follow(first + 1)
        await self._follower.start()
        self.fold(await self._follower.catch_up())

    async def follow(self) -> list[LiveBatch]:
        """Wait for more results, fold them, and return closed batches that have late ones."""
        assert self._follower is not None
        self.fold(await self._follower.next_batch())
        return [live for live in self._batches.closed() if live.state.late]

    async def close(self) -> None:
        """Stop following."""
        if self._follower is not None:
            await self._follower.close()
            self._follower = None

    def fold(self, received: Sequence[Received]) -> None:
        """Fold these messages, in order."""
        for message in received:
            self.last_seq = message.seq
            try:
                key, report = self._results.parse(message)
            except ContractError as error:
                self.malformed += 1
                logger.warning("result seq=%d ignored: %s", message.seq, error)
                continue
            if isinstance(report, Attempt):
                self.attempts[report.end] = self.attempts.get(report.end, 0) + 1
            else:
                self.task_done(key, report, message.seq, message.time_s)

    def task_done(self, key: SliceKey, result: Result, seq: int, at: float) -> None:
        """Fold one result header, stored at sequence ``seq`` and Unix time ``at``."""
        live = self._batches.remembered(key.batch)
        if live is not None:
            report = Report.of(key.slice, seq, at, result)
            live.apply(ResultArrived(key.task, report))
            self._settle(key, report)
