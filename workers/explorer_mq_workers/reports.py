"""What came of a slice, told to the bus: report, then settle, through any outage.

A worker that dies between the two is harmless, because the first result of a slice wins.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.leases import Lease
from explorer_mq.bus.patience import Patience
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.settings import SchedulerSettings
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.results import Attempt, AttemptEnd, DeadLetter, Failure, Result
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_workers.jobs import Job
from explorer_mq_workers.runner import SliceOutcome

logger = logging.getLogger(__name__)

_BODY_CHARS = 10_000
_USES_NO_ATTEMPT: tuple[AttemptEnd, ...] = ("drained", "cancelled", "rejected")


class Reports:
    """Reports of one worker; every call lasts until the server has it."""

    def __init__(
        self, bus: Bus, publisher: Publisher, settings: SchedulerSettings, worker: str
    ) -> None:
        self._log = ResultLog(bus, publisher)
        self._patience = Patience(bus)
        self._settings = settings
        self._worker = worker
        self._random = random.Random()  # noqa: S311 - jitter
        self.rejected = 0
        """Results refused because another attempt was first."""

    async def count(self, job: Job) -> None:
        """Find out which attempt ``job`` is."""
        job.excused = await self._excused(job.one.key, job.lease)
        job.attempt = job.one.attempts_used + max(1, job.lease.delivery - job.excused)

    async def report(self, job: Job, outcome: SliceOutcome) -> None:
        """The result, or what happens instead: another attempt, or giving the slice up."""
        if outcome.completed:
            await self._publish(job, _result(job, outcome, self._worker), outcome.payload)
            await self._ack(job)
        elif outcome.failure is not None and job.attempt >= job.one.max_attempts:
            await self.give_up(job, outcome.failure, outcome.seconds)
        else:
            await self._retry_later(job, outcome)

    async def give_up(self, job: Job, failure: Failure, seconds: float = 0.0) -> None:
        """The attempts are used up: dead letter, failed result, done."""
        key = job.one.key
        attempts = min(job.attempt, job.one.max_attempts)
        history = full_history(
            await self._attempts(key), first=job.one.attempts_used + 1, end=job.attempt
        )
        letter = DeadLetter(
            subject=job.lease.subject,
            reason=failure.message,
            worker=self._worker,
            attempts=attempts,
            failure=failure,
            history=history,
            body=_body(job.lease),
        )
        await self._set_dead(key, letter)
        result = Result(
            worker=self._worker,
            attempt=attempts,
            seconds=seconds,
            failure=failure.model_copy(update={"traceback": ""}),
            run_ids=job.one.run_ids,
        )
        await self._publish(job, result, b"")
        logger.error("slice=%s given up: %s", key, failure.message)
        await self._ack(job)

    async def let_go(self, job: Job) -> None:
        """Told to stop: a cancelled slice is done with, a drained one goes back unharmed.

        With the lease lost there is nothing to give: whoever has the slice now hears for himself.
        """
        if job.lease.is_lost:
            return
        if job.stop == "cancelled":
            await self._ack(job)
            return
        await self._hand_back_unharmed(
            job.lease,
            job.one.key,
            attempt=max(1, job.attempt),
            excused=job.excused,
            seconds=time.time() - job.started_at,
        )

    async def hand_back_untaken(self, lease: Lease) -> None:
        """A slice that arrived but was never begun goes back unharmed."""
        await lease.open()
        if lease.slice is None or lease.key is None:
            await lease.hand_back()
            return
        excused = await self._excused(lease.key, lease)
        attempt = lease.slice.attempts_used + max(1, lease.delivery - excused)
        await self._hand_back_unharmed(lease, lease.key, attempt=attempt, excused=excused)

    async def set_aside(self, lease: Lease) -> None:
        """A message that breaks the contract: dead letter, then out of the queue."""
        error = lease.error or ContractError("unreadable message")
        letter = DeadLetter(
            subject=lease.subject, reason=str(error), worker=self._worker, body=_body(lease)
        )
        await self._set_dead(lease.key, letter)
        logger.error("message on %s set aside: %s", lease.subject, error)
        await lease.terminate(str(error))

    async def _publish(self, job: Job, result: Result, payload: bytes) -> None:
        key = job.one.key
        if not await self._patience.until_done(
            lambda: self._log.publish(key, result, payload), "publishing results"
        ):
            self.rejected += 1
            logger.info("slice=%s another attempt was first, result dropped", key)

    async def _retry_later(self, job: Job, outcome: SliceOutcome) -> None:
        settings = self._settings
        longest_s = min(settings.retry_longest_s, settings.retry_first_s * 2.0 ** (job.attempt - 1))
        delay_s = longest_s * self._random.uniform(0.5, 1.0)
        record = Attempt(
            worker=self._worker,
            attempt=job.attempt,
            seconds=outcome.seconds,
            failure=outcome.failure,
            end=outcome.end,
            excused=job.excused,
            retry_in_s=delay_s,
        )
        await self._record(job.one.key, record)
        logger.warning(
            "slice=%s attempt=%d %s, again in %.1f s: %s",
            job.one.key,
            job.attempt,
            outcome.end,
            delay_s,
            outcome.failure.message if outcome.failure else "",
        )
        job.is_settled = True
        await job.lease.hand_back(delay_s)

    async def _hand_back_unharmed(
        self, lease: Lease, key: SliceKey, *, attempt: int, excused: int, seconds: float = 0.0
    ) -> None:
        record = Attempt(
            worker=self._worker,
            attempt=attempt,
            seconds=max(0.0, seconds),
            end="drained",
            excused=excused + 1,
        )
        await self._record(key, record)
        await lease.hand_back()

    async def _ack(self, job: Job) -> None:
        job.is_settled = True
        await job.lease.ack()

    async def _excused(self, key: SliceKey, lease: Lease) -> int:
        """Deliveries that use no attempt: never fewer than any record says.

        Records of attempts that were lost come from the coordinator, which does not count them.
        """
        if lease.delivery <= 1:
            return 0
        return max((record.excused for record in await self._attempts(key)), default=0)

    async def _attempts(self, key: SliceKey) -> tuple[Attempt, ...]:
        return await self._patience.until_done(
            lambda: self._log.attempts(key), "reading attempt records"
        )

    async def _record(self, key: SliceKey, record: Attempt) -> None:
        await self._patience.until_done(
            lambda: self._log.publish_attempt(key, record), "recording attempts"
        )

    async def _set_dead(self, key: SliceKey | None, letter: DeadLetter) -> None:
        await self._patience.until_done(
            lambda: self._log.publish_dead(key, letter), "publishing dead letters"
        )


def full_history(records: Iterable[Attempt], *, first: int, end: int) -> tuple[Attempt, ...]:
    """One record for each attempt from ``first`` to before ``end``.

    What a worker said about its attempt counts more than the coordinator's word that it was lost;
    an attempt without any record was lost too, with a worker nobody knows.
    """
    known: dict[int, Attempt] = {}
    for record in records:
        if record.end in _USES_NO_ATTEMPT:
            continue
        if record.end != "lost" or record.attempt not in known:
            known[record.attempt] = record
    return tuple(known.get(number) or _lost(number) for number in range(first, end))


def _lost(attempt: int) -> Attempt:
    text = f"attempt {attempt} ended without a report; its worker died or lost its lease"
    failure = Failure(code="transient", kind="WorkerLost", message=text)
    return Attempt(worker="unknown", attempt=attempt, seconds=0.0, failure=failure, end="lost")


def _result(job: Job, outcome: SliceOutcome, worker: str) -> Result:
    kept = 0 if job.one.task.is_eval else len(outcome.experiences)
    versions = [
        version
        for one in outcome.experiences
        for version in (one.policy_version_start, one.policy_version_end)
        if version is not None
    ]
    return Result(
        worker=worker,
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


def _body(lease: Lease) -> str:
    return lease.raw.decode(errors="replace")[:_BODY_CHARS]
