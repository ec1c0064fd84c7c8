"""What a worker says about itself: beats and claims, volatile, dropped while there is no server."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from explorer_mq import __version__
from explorer_mq.bus.connection import Bus
from explorer_mq.bus.tasks import TaskSource
from explorer_mq.settings import WorkerSettings
from explorer_mq_schemas.beats import Claims, WorkerBeat, WorkerState
from explorer_mq_schemas.errors import BusUnavailable
from explorer_mq_workers.engines.protocol import Engine
from explorer_mq_workers.jobs import Job, Jobs
from explorer_mq_workers.pacing import Paced
from explorer_mq_workers.policy import PolicyFollower
from explorer_mq_workers.reports import Reports

_BEAT_GAP_S = 0.1
_CLAIM_GAP_S = 0.02
_LOADING_S = 900.0
"""Ample for the largest model; a worker that is killed while it loads stays listed that long."""


class Beats:
    """Sends the worker's state when poked, and at least every ``beat_interval_s``."""

    def __init__(
        self,
        bus: Bus,
        name: str,
        settings: WorkerSettings,
        engine: Engine,
        *,
        jobs: Jobs,
        policy: PolicyFollower,
        reports: Reports,
        source: TaskSource,
    ) -> None:
        self._bus = bus
        self._name = name
        self._settings = settings
        self._engine = engine
        self._model = str(getattr(settings.engine, "model", ""))
        self._jobs = jobs
        self._policy = policy
        self._reports = reports
        self._source = source
        self._state: WorkerState = "starting"
        self._started_at = time.time()
        self._paced = Paced(self.send, gap_s=_BEAT_GAP_S, idle_s=settings.beat_interval_s)
        self.poke = self._paced.poke

    def set_state(self, state: WorkerState) -> None:
        """Say so with the next beat, which is sent at once."""
        self._state = state
        self.poke()

    async def run(self) -> None:
        """Send until cancelled."""
        self.poke()
        forget = self._bus.on_reconnect(self.poke)
        try:
            await self._paced.run()
        finally:
            forget()

    async def follow_policy(self) -> None:
        """Beat whenever another policy was loaded, or could not be."""
        while True:
            await self._policy.changed.wait()
            self.poke()

    async def send(self) -> None:
        """Send one beat now."""
        await _send(self._bus, self._bus.names.beat(self._name), self._beat())

    @property
    def _is_updating(self) -> bool:
        return self._state == "ready" and self._policy.is_swapping

    def _beat(self) -> WorkerBeat:
        return WorkerBeat(
            worker=self._name,
            pools=self._settings.pools,
            state="updating" if self._is_updating else self._state,
            slots=self._settings.slots,
            running=tuple(job.running() for job in self._jobs if job.attempt),
            policy_version=self._engine.policy_version,
            policy_error=self._policy.error,
            policies_loaded=self._policy.loaded,
            generated_tokens=self._engine.generated_tokens,
            finished_slices=self._jobs.finished,
            rejected_results=self._reports.rejected,
            lost_leases=self._source.lost,
            engine=self._engine.name,
            model=self._model,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            sent_at=self._bus.now(),
        )


async def announce(bus: Bus, name: str, settings: WorkerSettings) -> None:
    """Tell that a worker is about to load its engine, during which it cannot send beats."""
    beat = WorkerBeat(
        worker=name,
        pools=settings.pools,
        state="starting",
        slots=settings.slots,
        engine=settings.engine.type,
        model=str(getattr(settings.engine, "model", "")),
        host=socket.gethostname(),
        pid=os.getpid(),
        version=__version__,
        started_at=time.time(),
        sent_at=bus.now(),
        silence_s=_LOADING_S,
    )
    await bus.publish(bus.names.beat(name), beat.encode())
    await bus.api("INFO")  # a round trip: the beat has left


class ClaimSender:
    """Says at once which slices were taken; many taken together go in one message."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._jobs: list[Job] = []
        self._paced = Paced(self._send, gap_s=_CLAIM_GAP_S)
        self.run = self._paced.run

    def add(self, job: Job) -> None:
        """``job`` was taken, or holds its slice under a new lease."""
        self._jobs.append(job)
        self._paced.poke()

    async def _send(self) -> None:
        claims = Claims(worker=self._name, claims=tuple(job.claim() for job in self._jobs))
        self._jobs.clear()
        await _send(self._bus, self._bus.names.claims(self._name), claims)


async def _send(bus: Bus, subject: str, message: WorkerBeat | Claims) -> None:
    if bus.is_connected:
        with suppress(BusUnavailable):  # nobody could have heard it
            await bus.publish(subject, message.encode())
