"""Following the dynamic time-outs that the coordinator works out."""

from __future__ import annotations

import logging

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Received
from explorer_mq.bus.state import RunState
from explorer_mq.core.timeouts import attempt_timeout_s
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.tasks import Slice
from explorer_mq_schemas.timeouts import AttemptTimeouts

logger = logging.getLogger(__name__)

TIMEOUTS_KEY = "timeouts"


class TimeoutFollower:
    """Knows how long an attempt may take now; an unusable value leaves the last good one."""

    def __init__(self, bus: Bus) -> None:
        self._follower = RunState(bus).follow(TIMEOUTS_KEY)
        self._timeouts: AttemptTimeouts | None = None

    def timeout_s(self, one: Slice) -> float:
        """Seconds that an attempt at ``one`` may take if it starts now."""
        return attempt_timeout_s(
            self._timeouts,
            is_eval=one.task.is_eval,
            runs=len(one.run_ids),
            limit_s=one.timeout_s,
        )

    async def start(self) -> None:
        """Read what is in force."""
        await self._follower.start()
        if self._follower.backlog:
            self._take(await self._follower.next_batch())

    async def run(self) -> None:
        """Take over every change until cancelled."""
        while True:
            self._take(await self._follower.next_batch())

    async def close(self) -> None:
        """Stop."""
        await self._follower.close()

    def _take(self, messages: list[Received]) -> None:
        data = messages[-1].data
        try:
            self._timeouts = AttemptTimeouts.decode(data) if data else None
        except ContractError as error:
            logger.warning("dynamic time-outs: %s; the last good ones stay in force", error)
