"""The workers of a run as the coordinator sees them, from their beats."""

from __future__ import annotations

from explorer_mq.bus.connection import Bus, Msg, Subscription
from explorer_mq.crew import Pulse
from explorer_mq_schemas.beats import WorkerBeat
from explorer_mq_schemas.errors import ContractError

MISSED_BEATS = 3
"""A worker that was silent for this many beat intervals is no longer listed."""


class Roster:
    """Latest beat of every live worker."""

    def __init__(self, bus: Bus, *, beat_interval_s: float) -> None:
        self._bus = bus
        self._silence_s = MISSED_BEATS * beat_interval_s
        self._beats: dict[str, tuple[float, WorkerBeat]] = {}
        self._subscription: Subscription | None = None
        self.malformed = 0
        self.changed = Pulse()

    async def start(self) -> None:
        """Listen to beats."""
        self._subscription = await self._bus.subscribe(self._bus.names.all_beats, self._hear)

    async def close(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def workers(self) -> list[WorkerBeat]:
        """Beats of the workers heard recently, by name."""
        horizon = self._bus.now() - self._silence_s
        self._beats = {name: beat for name, beat in self._beats.items() if beat[0] >= horizon}
        return [beat for _, (_, beat) in sorted(self._beats.items())]

    async def _hear(self, message: Msg) -> None:
        try:
            beat = WorkerBeat.decode(message.data)
        except ContractError:
            self.malformed += 1
            return
        if beat.state == "stopped":
            self._beats.pop(beat.worker, None)
        else:
            self._beats[beat.worker] = (self._bus.now(), beat)
        self.changed.beat()
