"""Waiting until a trainer has published newer weights and the workers hold them."""

from __future__ import annotations

import asyncio
import logging

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.state import RunState
from explorer_mq.roster import Roster
from explorer_mq_schemas.errors import BatchTimeout
from explorer_mq_schemas.policy import PolicyAnnouncement
from explorer_mq_schemas.trainers import TrainerState, trainer_key

logger = logging.getLogger(__name__)

POLICY_KEY = "policy"
_LOAD_S = 120.0


class WeightSync:
    """What the policy of a run is, who is to publish it, and who holds it."""

    def __init__(self, bus: Bus, roster: Roster, trainer: str) -> None:
        self._bus = bus
        self._roster = roster
        self._state = RunState(bus)
        self._key = trainer_key(trainer)
        self._trainer = trainer
        self.seconds: dict[str, float] = {}
        """How long each worker took to hold the version that was last waited for."""

    async def newest(self) -> int:
        """The newest announced policy version; 0, the base model, before the first."""
        data = await self._state.get(POLICY_KEY)
        return PolicyAnnouncement.decode(data).version if data else 0

    async def phase(self) -> str:
        """``not_started``, ``running``, ``requires_sync`` or ``stopped``."""
        data = await self._state.get(self._key)
        return TrainerState.decode(data).phase if data else "not_started"

    async def wait_newer(self, than: int, *, seconds: float) -> int:
        """The newest version once it is above ``than``, or as it is once the trainer has stopped.

        A trainer that has not started is waited for: it is not one that has stopped.

        Raises:
            BatchTimeout: (a ``TimeoutError``) neither within ``seconds``.
        """
        try:
            async with (
                asyncio.timeout(seconds),
                self._state.follow(POLICY_KEY, self._key) as changes,
            ):
                while True:
                    newest = await self.newest()
                    if newest > than or await self.phase() == "stopped":
                        return newest
                    await changes.next_batch()
        except TimeoutError as error:
            raise BatchTimeout(
                f"run {self._bus.names.run}: trainer {self._trainer} ({await self.phase()}) has "
                f"published no policy version above {than} within {seconds:g} s; look at the "
                "trainer, or raise explorer.sync_timeout_s"
            ) from error

    async def wait_loaded(self, version: int) -> dict[str, int]:
        """Versions of all workers once each holds ``version``, or has said that it cannot load it."""
        began = self._bus.now()
        end = began + _LOAD_S
        self.seconds = {}
        while True:
            beats = self._roster.workers()
            for beat in beats:
                if beat.policy_version >= version:
                    self.seconds.setdefault(beat.worker, self._bus.now() - began)
            behind = [
                beat
                for beat in beats
                if beat.state in ("ready", "updating")
                and beat.policy_version < version
                and not beat.policy_error
            ]
            left_s = end - self._bus.now()
            if not behind or left_s <= 0:
                for beat in behind:
                    logger.warning("worker=%s is still at %d", beat.worker, beat.policy_version)
                return {beat.worker: beat.policy_version for beat in beats}
            await self._roster.changed.wait(left_s)
