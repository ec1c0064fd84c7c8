"""Seeing to it that workers drop what nobody needs any more: told, told again, then fenced."""

from __future__ import annotations

import logging

from explorer_mq.batches import Batches
from explorer_mq.bus.connection import Bus
from explorer_mq.crew import Crew
from explorer_mq.driver import Driver
from explorer_mq.live import LiveBatch
from explorer_mq.revocation import Revocation
from explorer_mq.roster import Roster, RunnerWrapper
from explorer_mq_schemas.errors import TransientError

logger = logging.getLogger(__name__)


class Cancelling:
    """Cancels are volatile: a worker that was cut off is told again with each beat that shows need.

    A worker that has not dropped a closed batch within ``grace_s`` is fenced: it may hang, so
    whatever it holds is given to others. Its own results are refused or removed as late either way.
    """

    def __init__(
        self,
        bus: Bus,
        batches: Batches,
        roster: Roster,
        driver: Driver,
        revocation: Revocation,
        *,
        grace_s: float,
    ) -> None:
        self._bus = bus
        self._batches = batches
        self._roster = roster
        self._driver = driver
        self._revocation = revocation
        self._grace_s = grace_s
        self._crew: Crew | None = None
        roster.on_beat(self._look_at)

    def start(self, crew: Crew) -> None:
        """Look at beats from now on."""
        self._crew = crew

    async def confirm(self, live: LiveBatch) -> None:
        """Return when no worker is busy with the closed batch; fence those that stay busy."""
        end = self._bus.now() + self._grace_s
        while busy := self._busy_with(live.name):
            left_s = end - self._bus.now()
            if left_s <= 0:
                break
            await self._roster.changed.wait(left_s)
        for runner in busy:
            runner.is_fenced = True
            why = f"did not drop the closed batch {live.name} within {self._grace_s:g} s"
            await self._revocation.revoke(runner, "worker_fenced", why)

    def _busy_with(self, batch: str) -> list[RunnerWrapper]:
        return [
            runner
            for runner in self._roster.runners()
            if runner.beat is not None and any(one.batch == batch for one in runner.beat.running)
        ]

    def _look_at(self, runner: RunnerWrapper) -> None:
        stale = self._stale(runner)
        if stale and self._crew is not None:
            self._crew.start(self._cancel_again(stale), name=f"cancels for {runner.worker}")
        elif not stale:
            runner.is_fenced = False

    def _stale(self, runner: RunnerWrapper) -> list[LiveBatch]:
        """Closed batches the worker is still busy with."""
        busy = {one.batch for one in runner.beat.running} if runner.beat is not None else set()
        known = [self._batches.remembered(batch) for batch in busy]
        return [live for live in known if live is not None and live.state.outcome is not None]

    async def _cancel_again(self, batches: list[LiveBatch]) -> None:
        for live in batches:
            try:
                await self._driver.cancel(live, "the batch is closed")
            except TransientError as error:
                logger.warning("batch=%s not cancelled again: %s", live.name, error)
