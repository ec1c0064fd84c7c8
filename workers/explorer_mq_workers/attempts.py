"""One attempt at a slice: run, watched by a time limit, for progress, and for being told to stop."""

from __future__ import annotations

import asyncio
import logging
import time

from explorer_mq_schemas.results import Failure
from explorer_mq_workers.jobs import Job
from explorer_mq_workers.runner import SliceOutcome, WorkflowRunner

logger = logging.getLogger(__name__)

_LEAST_WAIT_SHARE = 0.05
"""A stall is noticed this share of its limit too late at most; so no short waits in a row."""


class Attempts:
    """Makes attempts, and keeps the workflows that go on although they were told to end.

    Such a workflow can sample no more and its slot is free again; nothing else can be done, since
    Python cannot end code that swallows its cancellation.

    Args:
        runner: runs the workflows.
        grace_s: how long one may take to end once it is told to.
    """

    def __init__(self, runner: WorkflowRunner, *, grace_s: float) -> None:
        self._runner = runner
        self._grace_s = grace_s
        self._abandoned: set[asyncio.Task[SliceOutcome]] = set()

    @property
    def abandoned(self) -> int:
        """Workflows that go on although they were told to end."""
        return len(self._abandoned)

    async def run(self, job: Job, *, timeout_s: float) -> SliceOutcome | None:
        """What came of one attempt; None when ``job`` was told to stop before its end.

        Args:
            job: holds the slice, whose ``stall_timeout_s`` is applied here.
            timeout_s: longest it may take.
        """
        started = time.monotonic()
        work = asyncio.create_task(
            self._runner.run_slice(job.one, job.activity), name=f"attempt {job.one.key}"
        )
        stopped = asyncio.create_task(job.stopped.wait(), name=f"stop of {job.one.key}")
        overdue: SliceOutcome | None = None
        job.in_attempt = True
        try:
            while not work.done() and not stopped.done() and overdue is None:
                left_s = started + timeout_s - time.monotonic()
                quiet_left_s = _quiet_left_s(job)
                if left_s <= 0:
                    overdue = _timed_out(job, timeout_s, time.monotonic() - started)
                elif quiet_left_s <= 0:
                    overdue = _stalled(job, time.monotonic() - started)
                else:
                    await asyncio.wait(
                        (work, stopped),
                        timeout=min(left_s, quiet_left_s),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
        finally:
            stopped.cancel()
            await self._end(work, job)
            job.in_attempt = False
        if job.stop is not None:
            return None
        return overdue or _outcome(work, job, time.monotonic() - started)

    async def _end(self, work: asyncio.Task[SliceOutcome], job: Job) -> None:
        """Make sure that the attempt uses neither engine nor slot any more."""
        if work.done():
            return
        work.cancel()
        job.activity.abort()
        try:
            await asyncio.wait((work,), timeout=self._grace_s)
        finally:
            if not work.done():
                self._abandon(work, job)

    def _abandon(self, work: asyncio.Task[SliceOutcome], job: Job) -> None:
        logger.warning(
            "slice=%s: workflow %r goes on although it was cancelled; its slot is given to others, "
            "it can make no more model calls",
            job.one.key,
            job.one.task.workflow,
        )
        self._abandoned.add(work)
        work.add_done_callback(self._bury)

    def _bury(self, work: asyncio.Task[SliceOutcome]) -> None:
        self._abandoned.discard(work)
        error = None if work.cancelled() else work.exception()
        logger.info("%s: the abandoned workflow has ended: %s", work.get_name(), error or "quietly")


def _outcome(work: asyncio.Task[SliceOutcome], job: Job, seconds: float) -> SliceOutcome:
    if not work.cancelled():
        return work.result()
    text = f"workflow {job.one.task.workflow!r} cancelled the attempt it was run by"
    return SliceOutcome(
        failure=Failure(code="task", kind="CancelledError", message=text), seconds=seconds
    )


def _quiet_left_s(job: Job) -> float:
    """How long the attempt may still go without progress."""
    limit_s = job.one.stall_timeout_s
    if limit_s is None:
        return float("inf")
    job.activity.look()
    left_s = limit_s - job.activity.idle_s
    return left_s if left_s <= 0 else max(left_s, limit_s * _LEAST_WAIT_SHARE)


def _timed_out(job: Job, timeout_s: float, seconds: float) -> SliceOutcome:
    dynamic = "" if timeout_s >= job.one.timeout_s else ", shortened by scheduler.dynamic_timeout"
    text = f"slice {job.one.key}: no result within {timeout_s:g} s (attempt time-out{dynamic})"
    failure = Failure(code="timeout", kind="TimeoutError", message=text)
    return SliceOutcome(failure=failure, seconds=seconds, end="timeout")


def _stalled(job: Job, seconds: float) -> SliceOutcome:
    activity = job.activity
    doing = f"waited for {activity.waiting} answers" if activity.waiting else "was in its own code"
    text = (
        f"slice {job.one.key}: workflow {job.one.task.workflow!r} sampled no token, made no model "
        f"call and noted no state for {activity.idle_s:.3g} s; after {activity.calls} calls and "
        f"{activity.tokens} tokens it {doing} (scheduler.stall_timeout_s = "
        f"{job.one.stall_timeout_s:g})"
    )
    failure = Failure(code="timeout", kind="Stalled", message=text)
    return SliceOutcome(failure=failure, seconds=seconds, end="stalled")
