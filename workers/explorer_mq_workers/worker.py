"""The worker: lease, run, report, settle.

Flow: :meth:`Worker.run` -> :meth:`_take_loop` -> one :meth:`_work` per leased slice -> outcome ->
:meth:`_report` publishes what came of it -> the lease is settled. Always report, then settle: a
worker that dies between the two is harmless, because the first result of a slice wins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from dataclasses import dataclass
from typing import Literal

from explorer_mq import __version__
from explorer_mq.bus.connection import Bus, Msg
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.tasks import Lease, TaskSource
from explorer_mq.bus.topology import wait_ready
from explorer_mq.crew import Crew, Pulse
from explorer_mq.plugins import load
from explorer_mq.running import run_until_signal
from explorer_mq.settings import Settings
from explorer_mq_schemas.beats import RunningSlice, WorkerBeat, WorkerState
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.errors import ContractError, EngineError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.results import Attempt, AttemptEnd, DeadLetter, Failure, Result
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_schemas.tasks import Slice
from explorer_mq_workers.engines.protocol import Engine
from explorer_mq_workers.policy import PolicyFollower
from explorer_mq_workers.runner import SliceOutcome, WorkflowRunner

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 30.0
_BODY_CHARS = 10_000


@dataclass(slots=True)
class _Job:
    """A slice in work and why it was told to stop, if it was."""

    lease: Lease
    one: Slice
    attempt: int
    excused: int
    started_at: float
    stop: Literal["", "cancelled", "drained"] = ""


class Worker:
    """Serves slices of its pools with one engine until told to stop."""

    def __init__(self, bus: Bus, engine: Engine, settings: Settings) -> None:
        self.name = settings.worker.id or new_id("worker")
        self._bus = bus
        self._engine = engine
        self._settings = settings.worker
        self._model = getattr(settings.worker.engine, "model", "")
        self._publisher = Publisher(bus)
        self._results = ResultLog(bus, self._publisher)
        self._source = TaskSource(bus, settings.worker.pools, lease_s=settings.scheduler.lease_s)
        self._policy = PolicyFollower(bus, engine)
        self._runner = WorkflowRunner(engine, concurrent_mode=settings.worker.concurrent_mode)
        self._jobs: dict[asyncio.Task[None], _Job] = {}
        self._state: WorkerState = "starting"
        self._started_at = time.time()
        self._finished = 0
        self._random = random.Random()  # noqa: S311 - jitter
        self.changed = Pulse()

    @property
    def busy_slots(self) -> int:
        """Slices in work at this moment."""
        return len(self._jobs)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then hand back what is unfinished.

        Raises:
            EngineError: the engine died; unfinished slices went back.
        """
        async with Crew() as crew:
            await self._publisher.start()
            crew.start(self._beat_loop(), name="beats")
            cancels = await self._bus.subscribe(self._bus.names.cancel, self._hear_cancel)
            crew.start(self._watch_engine(), name="engine")
            crew.start(self._watch_bus(), name="connection")
            joining = crew.start(self._join_run(crew), name="join")
            try:
                await self._until(stop, crew)
            finally:
                self._state = "draining"
                joining.cancel()
                await asyncio.gather(joining, return_exceptions=True)
                await self._drain()
                await cancels.unsubscribe()
                await self._policy.close()
                await self._publisher.close()
                self._state = "stopped"
                await self._send_beat()

    async def _join_run(self, crew: Crew) -> None:
        """Wait for the run's coordinator, load the newest policy, then begin to pull."""
        await wait_ready(self._bus, self._settings.pools)
        await self._policy.start()
        await self._source.start()
        self._state = "ready"
        self._source.add_credits(self._settings.slots)
        crew.start(self._take_loop(crew), name="slices")
        crew.start(self._policy.run(), name="policy")
        await self._send_beat()
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
            crew.start(self._serve(lease), name=f"slice {lease.subject}")

    async def _serve(self, lease: Lease) -> None:
        try:
            if lease.slice is None or lease.key is None:
                await self._set_aside(lease)
            else:
                await self._work(lease, lease.slice, lease.key)
        finally:
            self._source.add_credits(1)

    async def _work(self, lease: Lease, one: Slice, key: SliceKey) -> None:
        history = await self._results.attempts(key) if lease.delivery > 1 else ()
        excused = history[-1].excused if history else 0
        attempt = one.attempts_used + max(1, lease.delivery - excused)
        job = _Job(lease, one, attempt, excused, time.time())
        if attempt > one.max_attempts:
            failure = Failure(
                code="transient",
                kind="WorkerLost",
                message=f"slice {key}: {attempt - 1} attempts ended without a report; its worker "
                "died or lost its lease each time",
            )
            await self._give_up(job, failure, 0.0)
            return
        task = asyncio.current_task()
        assert task is not None
        self._jobs[task] = job
        self.changed.beat()
        try:
            await self._report(job, await self._attempt(job))
        except asyncio.CancelledError:
            if not job.stop:
                raise
            task.uncancel()
            await self._let_go(job)
        finally:
            del self._jobs[task]
            self._finished += 1

    async def _attempt(self, job: _Job) -> SliceOutcome:
        started = time.monotonic()
        try:
            async with asyncio.timeout(job.one.timeout_s):
                return await self._runner.run_slice(job.one)
        except TimeoutError:
            seconds = time.monotonic() - started
            text = (
                f"slice {job.one.key}: no result within {job.one.timeout_s:g} s (attempt time-out)"
            )
            return SliceOutcome(
                failure=Failure(code="timeout", kind="TimeoutError", message=text), seconds=seconds
            )

    async def _report(self, job: _Job, outcome: SliceOutcome) -> None:
        if outcome.completed:
            await self._publish(job, outcome)
        elif outcome.failure is not None and job.attempt >= job.one.max_attempts:
            await self._give_up(job, outcome.failure, outcome.seconds)
        else:
            await self._retry_later(job, outcome)

    async def _publish(self, job: _Job, outcome: SliceOutcome) -> None:
        kept = 0 if job.one.task.is_eval else len(outcome.experiences)
        versions = [
            version
            for one in outcome.experiences
            for version in (one.policy_version_start, one.policy_version_end)
            if version is not None
        ]
        result = Result(
            worker=self.name,
            attempt=job.attempt,
            seconds=outcome.seconds,
            failure=outcome.failure,
            run_ids=job.one.run_ids,
            completed=outcome.completed,
            metrics=tuple(
                {**metrics, "time/task_execution": outcome.seconds} for metrics in outcome.metrics
            ),
            experiences=kept,
            bytes=len(outcome.payload),
            policy_version_min=min(versions, default=None),
            policy_version_max=max(versions, default=None),
        )
        if not await self._results.publish(job.one.key, result, outcome.payload):
            logger.info("slice=%s another attempt was first, result dropped", job.one.key)
        await job.lease.ack()

    async def _retry_later(self, job: _Job, outcome: SliceOutcome) -> None:
        longest = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** (job.attempt - 1))
        delay_s = longest * self._random.uniform(0.5, 1.0)
        end: AttemptEnd = (
            "timeout" if outcome.failure and outcome.failure.code == "timeout" else "failed"
        )
        await self._results.publish_attempt(
            job.one.key,
            Attempt(
                worker=self.name,
                attempt=job.attempt,
                seconds=outcome.seconds,
                failure=outcome.failure,
                end=end,
                excused=job.excused,
                retry_in_s=delay_s,
            ),
        )
        logger.warning(
            "slice=%s attempt=%d %s, again in %.1f s: %s",
            job.one.key,
            job.attempt,
            end,
            delay_s,
            outcome.failure.message if outcome.failure else "",
        )
        await job.lease.hand_back(delay_s)

    async def _give_up(self, job: _Job, failure: Failure, seconds: float) -> None:
        """The budget is used up: dead letter, failed result, done."""
        key = job.one.key
        letter = DeadLetter(
            subject=job.lease.subject,
            reason=failure.message,
            worker=self.name,
            attempts=min(job.attempt, job.one.max_attempts),
            failure=failure,
            history=await self._results.attempts(key),
            body=job.lease.raw.decode(errors="replace")[:_BODY_CHARS],
        )
        await self._results.publish_dead(key, letter)
        result = Result(
            worker=self.name,
            attempt=min(job.attempt, job.one.max_attempts),
            seconds=seconds,
            failure=failure.model_copy(update={"traceback": ""}),
            run_ids=job.one.run_ids,
        )
        await self._results.publish(key, result, b"")
        logger.error("slice=%s given up: %s", key, failure.message)
        await job.lease.ack()

    async def _let_go(self, job: _Job) -> None:
        """Told to stop: a cancelled slice is done with, a drained one goes back unharmed."""
        if job.stop == "cancelled":
            await job.lease.ack()
            return
        record = Attempt(
            worker=self.name,
            attempt=job.attempt,
            seconds=time.time() - job.started_at,
            end="drained",
            excused=job.excused + 1,
        )
        await self._results.publish_attempt(job.one.key, record)
        await job.lease.hand_back()

    async def _set_aside(self, lease: Lease) -> None:
        error = lease.error or ContractError("unreadable message")
        letter = DeadLetter(
            subject=lease.subject,
            reason=str(error),
            worker=self.name,
            body=lease.raw.decode(errors="replace")[:_BODY_CHARS],
        )
        await self._results.publish_dead(lease.key, letter)
        logger.error("message on %s set aside: %s", lease.subject, error)
        await lease.terminate(str(error))

    async def _hear_cancel(self, message: Msg) -> None:
        try:
            cancel = Cancel.decode(message.data)
        except ContractError as error:
            logger.warning("cancel ignored: %s", error)
            return
        for task, job in list(self._jobs.items()):
            named = not cancel.tasks or job.one.task_number in cancel.tasks
            if job.one.batch == cancel.batch and named and not job.stop:
                job.stop = "cancelled"
                task.cancel()

    async def _drain(self) -> None:
        """Hand back everything at once; other workers need not wait for a lease to end."""
        await self._source.close()
        tasks = list(self._jobs)
        for task in tasks:
            if not self._jobs[task].stop:
                self._jobs[task].stop = "drained"
                task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain_timeout_s)
        await self._source.stop_extending()

    async def _watch_engine(self) -> None:
        raise EngineError(await self._engine.wait_dead())

    async def _watch_bus(self) -> None:
        raise EngineError(f"NATS connection lost: {await self._bus.wait_closed()}")

    async def _beat_loop(self) -> None:
        while True:
            await self._send_beat()
            await self._policy.changed.wait(self._settings.beat_interval_s)

    async def _send_beat(self) -> None:
        beat = WorkerBeat(
            worker=self.name,
            pools=self._settings.pools,
            state=self._state,
            slots=self._settings.slots,
            running=tuple(
                RunningSlice(
                    batch=job.one.batch,
                    task=job.one.task_number,
                    slice=job.one.number,
                    attempt=job.attempt,
                    started_at=job.started_at,
                )
                for job in self._jobs.values()
            ),
            policy_version=self._engine.policy_version,
            policy_error=self._policy.error,
            policies_loaded=self._policy.loaded,
            generated_tokens=self._engine.generated_tokens,
            finished_slices=self._finished,
            engine=self._engine.name,
            model=self._model,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            sent_at=self._bus.now(),
        )
        await self._bus.publish(self._bus.names.beat(self.name), beat.encode())


async def serve_worker(settings: Settings, stop: asyncio.Event) -> None:
    """Connect, start the engine, work until ``stop`` is set.

    The server is tried before the engine is loaded, so that a wrong url costs no minutes; the
    connection that lasts is made afterwards, because loading blocks the event loop.

    Raises:
        ConfigError, BusUnavailable, PermissionRefused: at once, before the engine is loaded.
        EngineError: the engine died later.
    """
    options = settings.nats.options(f"worker/{settings.worker.id or socket.gethostname()}")
    await (await Bus.connect(settings.run, options)).close()
    engine: Engine = load(settings.worker.engine.type, "explorer_mq.engines")(
        settings.worker.engine
    )
    await engine.start()
    try:
        async with await Bus.connect(settings.run, options) as bus:
            await Worker(bus, engine, settings).run(stop)
    finally:
        await engine.close()


def run_worker(settings: Settings) -> int:
    """The worker command: serve until SIGTERM or SIGINT."""
    return run_until_signal(lambda stop: serve_worker(settings, stop))
