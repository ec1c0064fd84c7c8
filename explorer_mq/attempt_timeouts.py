"""Telling workers how long an attempt may take, whenever a finished batch has changed it."""

from __future__ import annotations

import logging

from explorer_mq.batches import Batches
from explorer_mq.bus.connection import Bus
from explorer_mq.bus.state import RunState
from explorer_mq.core.timeouts import attempt_timeout_s
from explorer_mq.crew import Pulse
from explorer_mq.settings import DynamicTimeoutSettings
from explorer_mq_schemas.errors import TransientError
from explorer_mq_schemas.timeouts import AttemptTimeouts

logger = logging.getLogger(__name__)

TIMEOUTS_KEY = "timeouts"


class AttemptTimeoutPublisher:
    """The dynamic time-out of a run, from the durations of its batches."""

    def __init__(self, bus: Bus, batches: Batches, rules: DynamicTimeoutSettings) -> None:
        self._bus = bus
        self._batches = batches
        self._rules = rules

    def current(self) -> AttemptTimeouts:
        """What workers are told now; without means while it is off or warming up."""
        rules = self._rules
        if not rules.enable:
            return AttemptTimeouts(ratio=rules.ratio)
        return self._batches.history.timeouts(
            ratio=rules.ratio, warmup_min_steps=rules.warmup_min_steps
        )

    def group_timeout_s(self, limit_s: float) -> float:
        """Seconds an attempt at the largest group seen may take."""
        current = self.current()
        runs = max(current.train, default=1)
        return attempt_timeout_s(current, is_eval=False, runs=runs, limit_s=limit_s)

    async def run(self, changed: Pulse) -> None:
        """Publish at once and after each beat of ``changed``, until cancelled."""
        state = RunState(self._bus)
        while True:
            wanted = self.current().encode()
            try:
                if await state.get(TIMEOUTS_KEY) != wanted:
                    await state.put(TIMEOUTS_KEY, wanted)
            except TransientError as error:
                logger.warning("time-outs not published: %s", error)
            await changed.wait()
