"""The workers of a run as the coordinator sees them, from their beats and claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from explorer_mq.bus.connection import Bus, Msg, Subscription
from explorer_mq.core.runners import RunningTaskState, runner_states
from explorer_mq.crew import Pulse
from explorer_mq_schemas.beats import Claim, Claims, WorkerBeat
from explorer_mq_schemas.errors import ContractError

MISSED_BEATS = 3
"""A worker that was silent for this many beat intervals is no longer listed."""


class RunnerWrapper:
    """One worker: its newest beat, when it was heard, and the leases it holds.

    ``heard_at`` is Unix time on the server's clock. ``leases`` are claims by acknowledgement
    subject, kept until a beat shows what the worker really holds.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.beat: WorkerBeat | None = None
        self.heard_at = 0.0
        self.leases: dict[str, Claim] = {}
        self.is_fenced = False

    @property
    def silence_s(self) -> float:
        """How long the worker said it may be silent."""
        return 0.0 if self.beat is None else self.beat.silence_s

    def hear_beat(self, beat: WorkerBeat, at: float) -> None:
        """Take over what the worker says of itself."""
        self.beat = beat
        self.heard_at = at
        self.leases = {
            one.lease: Claim(
                batch=one.batch,
                task=one.task,
                slice=one.slice,
                attempt=one.attempt,
                lease=one.lease,
            )
            for one in beat.running
            if one.lease
        }

    def hear_claims(self, claims: Claims, at: float) -> None:
        """Add what the worker has just taken."""
        self.heard_at = at
        self.leases.update((claim.lease, claim) for claim in claims.claims)

    def forget(self, batch: str, task: int, number: int) -> None:
        """The slice has its result: nothing of it is left to hand back."""
        name = (batch, task, number)
        for lease, claim in list(self.leases.items()):
            if (claim.batch, claim.task, claim.slice) == name:
                del self.leases[lease]

    def running(self) -> list[RunningTaskState]:
        """What its slots are busy with."""
        return [] if self.beat is None else runner_states(self.beat)


class Roster:
    """Every live worker; ``changed`` beats whenever one is heard."""

    def __init__(self, bus: Bus, *, beat_interval_s: float) -> None:
        self._bus = bus
        self._silence_s = MISSED_BEATS * beat_interval_s
        self._workers: dict[str, RunnerWrapper] = {}
        self._subscriptions: list[Subscription] = []
        self._listeners: list[Callable[[RunnerWrapper], None]] = []
        self.malformed = 0
        self.changed = Pulse()

    async def start(self) -> None:
        """Listen to beats and claims."""
        names = self._bus.names
        self._subscriptions = [
            await self._bus.subscribe(names.all_beats, self._hear_beat),
            await self._bus.subscribe(names.all_claims, self._hear_claims),
        ]

    async def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions = []

    def on_beat(self, listener: Callable[[RunnerWrapper], None]) -> None:
        """Call ``listener`` after each beat."""
        self._listeners.append(listener)

    def runners(self) -> list[RunnerWrapper]:
        """Workers heard recently, by name; those silent for too long leave the table."""
        now = self._bus.now()
        self._workers = {
            name: runner
            for name, runner in self._workers.items()
            if now <= runner.heard_at + max(self._silence_s, runner.silence_s)
        }
        return [runner for _, runner in sorted(self._workers.items())]

    def workers(self) -> list[WorkerBeat]:
        """Beats of the workers heard recently, by name."""
        return [runner.beat for runner in self.runners() if runner.beat is not None]

    def find(self, worker: str) -> RunnerWrapper | None:
        """The worker of that name, also one that has been silent for long."""
        return self._workers.get(worker)

    def remove(self, worker: str) -> RunnerWrapper | None:
        """Take a worker that is known to be gone from the table."""
        found = self._workers.pop(worker, None)
        self.changed.beat()
        return found

    def states(self) -> dict[str, Mapping[str, Any]]:
        """State of every busy slot, by runner id ``<worker>/<slot>``."""
        return {
            state.runner_id: state.fields()
            for runner in self.runners()
            for state in runner.running()
        }

    async def _hear_beat(self, message: Msg) -> None:
        try:
            beat = WorkerBeat.decode(message.data)
        except ContractError:
            self.malformed += 1
            return
        if beat.state == "stopped":
            self._workers.pop(beat.worker, None)
        else:
            runner = self._workers.setdefault(beat.worker, RunnerWrapper(beat.worker))
            runner.hear_beat(beat, self._bus.now())
            for listener in self._listeners:
                listener(runner)
        self.changed.beat()

    async def _hear_claims(self, message: Msg) -> None:
        try:
            claims = Claims.decode(message.data)
        except ContractError:
            self.malformed += 1
            return
        runner = self._workers.setdefault(claims.worker, RunnerWrapper(claims.worker))
        runner.hear_claims(claims, self._bus.now())
