"""The worker: lease, run, report, settle.

Flow: :meth:`Worker.run` -> :meth:`_take_loop` -> one :meth:`_work` per leased slice, in a slot ->
``Attempts.run`` -> ``Reports.report`` publishes what came of it, then settles the lease. No outage of
the server ends a worker: what it has to tell waits, what it works on goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from explorer_mq.bus.connection import Bus, BusOptions, Msg
from explorer_mq.bus.leases import Lease
from explorer_mq.bus.patience import Patience
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.tasks import TaskSource
from explorer_mq.bus.topology import wait_ready
from explorer_mq.crew import Crew, Pulse
from explorer_mq.plugins import load
from explorer_mq.running import run_until_signal
from explorer_mq.settings import Settings
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.errors import BusUnavailable, ContractError, EngineError, ExplorerError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.results import Failure
from explorer_mq_schemas.subjects import RunNames
from explorer_mq_schemas.tasks import Slice
from explorer_mq_workers.attempts import Attempts
from explorer_mq_workers.beats import Beats, ClaimSender, announce
from explorer_mq_workers.engines.protocol import Engine
from explorer_mq_workers.jobs import Job, Jobs
from explorer_mq_workers.policy import PolicyFollower
from explorer_mq_workers.reports import Reports
from explorer_mq_workers.runner import WorkflowRunner
from explorer_mq_workers.timeouts import TimeoutFollower

logger = logging.getLogger(__name__)

_GRACE_S = 1.0
"""How long a workflow may take to end once it is told to."""


class Worker:
    """Serves slices of its pools with one engine until told to stop."""

    def __init__(self, bus: Bus, engine: Engine, settings: Settings) -> None:
        self.name = settings.worker.id or new_id("worker")
        self._bus = bus
        self._engine = engine
        self._settings = settings.worker
        self._jobs = Jobs()
        self._publisher = Publisher(bus)
        self._source = TaskSource(bus, settings.worker.pools, lease_s=settings.scheduler.lease_s)
        self._policy = PolicyFollower(bus, engine)
        self._timeouts = TimeoutFollower(bus)
        self._patience = Patience(bus)
        self._runner = WorkflowRunner(engine, concurrent_mode=settings.worker.concurrent_mode)
        # The coordinator fences a worker that shows cancelled work for longer than its own grace.
        grace_s = min(_GRACE_S, settings.scheduler.cancel_grace_s / 2)
        self._attempts = Attempts(self._runner, grace_s=grace_s)
        self._reports = Reports(bus, self._publisher, settings.scheduler, self.name)
        self._claims = ClaimSender(bus, self.name)
        self._beats = Beats(
            bus,
            self.name,
            settings.worker,
            engine,
            jobs=self._jobs,
            policy=self._policy,
            reports=self._reports,
            source=self._source,
        )

    @property
    def busy_slots(self) -> int:
        """Slices in work at this moment."""
        return len(self._jobs)

    @property
    def changed(self) -> Pulse:
        """Beats when a slot was taken or freed."""
        return self._jobs.changed

    @property
    def abandoned(self) -> int:
        """Workflows that go on although they were told to end."""
        return self._attempts.abandoned

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then hand back what is unfinished.

        Raises:
            EngineError: the engine died; unfinished slices went back.
        """
        async with Crew() as crew:
            await self._publisher.start()
            crew.start(self._beats.run(), name="beats")
            crew.start(self._beats.follow_policy(), name="beats of the policy")
            crew.start(self._claims.run(), name="claims")
            cancels = await self._bus.subscribe(self._bus.names.cancel, self._hear_cancel)
            crew.start(self._watch_engine(), name="engine")
            crew.start(self._watch_bus(), name="connection")
            joining = crew.start(self._join_run(crew), name="join")
            try:
                await self._until(stop, crew)
            finally:
                self._beats.set_state("draining")
                joining.cancel()
                await asyncio.gather(joining, return_exceptions=True)
                await self._drain(crew)
                await cancels.unsubscribe()
                await self._policy.close()
                await self._timeouts.close()
                await self._publisher.close()
                self._beats.set_state("stopped")
                await self._beats.send()

    async def _join_run(self, crew: Crew) -> None:
        """Wait for the run's coordinator, load the newest policy, then begin to pull."""
        pools = self._settings.pools
        await self._patience.until_done(lambda: wait_ready(self._bus, pools), "joining the run")
        await self._patience.until_done(self._policy.start, "reading the policy")
        await self._patience.until_done(self._timeouts.start, "reading the dynamic time-outs")
        await self._source.start()
        self._beats.set_state("ready")
        self._source.add_credits(self._settings.slots)
        crew.start(self._take_loop(crew), name="slices")
        crew.start(self._policy.run(), name="policy")
        crew.start(self._timeouts.run(), name="dynamic time-outs")
        logger.info("worker=%s ready run=%s", self.name, self._bus.names.run)

    async def _until(self, stop: asyncio.Event, crew: Crew) -> None:
        stopped = asyncio.create_task(stop.wait(), name="stop")
        failed = asyncio.create_task(crew.failed(), name="failure")
        try:
            await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
        finally:
            stopped.cancel()
            failed.cancel()
            await asyncio.gather(stopped, failed, return_exceptions=True)

    async def _take_loop(self, crew: Crew) -> None:
        while True:
            lease = await self._source.take()
            if self._is_renewal(lease):
                self._source.add_credits(1)
            else:
                crew.start(self._serve(lease), name=f"slice {lease.subject}")

    def _is_renewal(self, lease: Lease) -> bool:
        """A slice that comes again while its attempt goes on here is that attempt's new lease.

        So it is after an outage longer than a lease. The delivery uses no attempt.
        """
        job = self._jobs.find(lease.key) if lease.key is not None else None
        if job is None or not job.attempt or job.one != lease.slice:
            return False
        self._source.forget(job.lease)
        job.lease = lease
        job.excused += 1
        self._claims.add(job)
        logger.info("slice=%s goes on under a new lease", job.one.key)
        return True

    async def _serve(self, lease: Lease) -> None:
        try:
            if lease.slice is None:
                await self._reports.set_aside(lease)
            else:
                await self._work(lease, lease.slice)
        finally:
            self._source.add_credits(1)

    async def _work(self, lease: Lease, one: Slice) -> None:
        activity = self._runner.new_activity(one.batch, one.task_number, one.run_ids[0])
        job = self._jobs.open(lease, one, activity)
        try:
            await self._attempt(job)
        except asyncio.CancelledError:
            if job.stop != "cancelled":
                raise
            job.task.uncancel()
            await self._reports.let_go(job)
        finally:
            self._jobs.close(job)
            if job.stop == "cancelled":  # the coordinator waits to see it gone
                self._beats.poke()

    async def _attempt(self, job: Job) -> None:
        await self._reports.count(job)
        if job.attempt > job.one.max_attempts:
            failure = Failure(
                code="transient",
                kind="WorkerLost",
                message=f"slice {job.one.key}: all {job.one.max_attempts} attempts are used up, the "
                "last ended without a report; its worker died or lost its lease",
            )
            await self._reports.give_up(job, failure)
            return
        self._claims.add(job)
        outcome = await self._attempts.run(job, timeout_s=self._timeouts.timeout_s(job.one))
        if outcome is None:
            await self._reports.let_go(job)
        else:
            await self._reports.report(job, outcome)

    async def _hear_cancel(self, message: Msg) -> None:
        try:
            cancel = Cancel.decode(message.data)
        except ContractError as error:
            logger.warning("cancel ignored: %s", error)
            return
        for job in self._jobs:
            named = not cancel.tasks or job.one.task_number in cancel.tasks
            if job.one.batch == cancel.batch and named:
                job.tell_to_stop("cancelled")

    async def _drain(self, crew: Crew) -> None:
        """Hand back everything at once; other workers need not wait for a lease to end.

        Results that are finished are still reported. Without a server nothing of this can be done,
        and the time is up after ``drain_timeout_s``.
        """
        going = [job.task for job in self._jobs]
        for lease in await self._source.close():
            untaken = self._reports.hand_back_untaken(lease)
            going.append(crew.start(untaken, name=f"untaken {lease.subject}"))
        for job in self._jobs:
            job.tell_to_stop("drained")
        if going:
            await asyncio.wait(going, timeout=self._settings.drain_timeout_s)
        await self._source.stop_extending()

    async def _watch_engine(self) -> None:
        raise EngineError(await self._engine.wait_dead())

    async def _watch_bus(self) -> None:
        raise EngineError(f"NATS connection lost: {await self._bus.wait_closed()}")


async def serve_worker(settings: Settings, stop: asyncio.Event) -> None:
    """Connect, start the engine, work until ``stop`` is set.

    The server is tried before the engine is loaded, so that a wrong url costs no minutes; the
    connection that lasts is made afterwards, because loading blocks the event loop. That one bears
    the worker's name, by which the coordinator knows at once when it is gone.

    Raises:
        ConfigError, BusUnavailable, PermissionRefused: at once, before the engine is loaded.
        EngineError: the engine died later.
    """
    name = settings.worker.id or new_id("worker")
    named = settings.model_copy(update={"worker": settings.worker.model_copy(update={"id": name})})
    names = RunNames(settings.run)
    probe = settings.nats.options(names.connection("probe", name))
    async with await Bus.connect(settings.run, probe) as trial:
        await announce(trial, name, settings.worker)
    engine: Engine = load(settings.worker.engine.type, "explorer_mq.engines")(
        settings.worker.engine
    )
    await engine.start()
    worker: Worker | None = None
    try:
        options = settings.nats.options(names.connection("worker", name))
        bus = await _connect(settings.run, options, stop)
        if bus is not None:
            async with bus:
                worker = Worker(bus, engine, named)
                await worker.run(stop)
    finally:
        await engine.close()
        if worker is not None and worker.abandoned:
            _leave(worker, sys.exception())


async def _connect(run: str, options: BusOptions, stop: asyncio.Event) -> Bus | None:
    """A connection, however long the server is away; None when ``stop`` was set meanwhile."""
    while not stop.is_set():
        try:
            return await Bus.connect(run, options)
        except BusUnavailable as error:
            logger.warning("%s; trying again, since the engine is loaded", error)
    return None


def _leave(worker: Worker, error: BaseException | None) -> None:
    """End the process: asyncio would wait for ever for workflows that swallow their cancellation."""
    logger.error(
        "%d workflows go on although they were cancelled; worker=%s ends without them",
        worker.abandoned,
        worker.name,
    )
    code = 0
    if error is not None:
        logger.error("worker=%s failed: %s", worker.name, error)
        code = error.exit_code if isinstance(error, ExplorerError) else 1
    logging.shutdown()
    os._exit(code)


def run_worker(settings: Settings) -> int:
    """The worker command: serve until SIGTERM or SIGINT."""
    return run_until_signal(lambda stop: serve_worker(settings, stop))
