"""What everything is waiting for, from facts alone; each finding names the command that helps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from explorer_mq.core.runners import RunningTaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """An open batch. Times are seconds from now; ``awaits_finalize``: nobody will close it."""

    name: str
    phase: str
    tasks: int
    settled: int
    awaits_finalize: bool
    waiting_retries: int = 0
    next_retry_in_s: float | None = None
    deadline_in_s: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """A worker that was heard recently."""

    name: str
    state: str
    pools: tuple[str, ...]
    slots: int
    running: tuple[RunningTaskState, ...] = ()
    policy_version: int = 0
    policy_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """Slices of one pool: not given out yet, and under a lease."""

    name: str
    pending: int
    leased: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFacts:
    """A trainer: batches it has not been given, and those it holds without an acknowledgement."""

    name: str
    unread: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A run at Unix time ``now`` on the server's clock."""

    run: str
    now: float
    batches: tuple[BatchFacts, ...] = ()
    workers: tuple[WorkerFacts, ...] = ()
    pools: tuple[PoolFacts, ...] = ()
    trainers: tuple[TrainerFacts, ...] = ()
    policy_version: int = 0
    server_error: str = ""


class Finding(NamedTuple):
    """Why nothing moves, in words, and the command that would change it."""

    cause: str
    text: str
    remedy: str


STILL_S = 10.0
"""A slice without progress for this long is worth naming."""


def diagnose(facts: Facts) -> list[Finding]:
    """Every reason that applies, the likeliest cause of a standstill first."""
    if facts.server_error:
        return [_server(facts)]
    found = [
        *_failures(facts.batches),
        *_pools(facts),
        *_policies(facts),
        *_stragglers(facts),
        *_retries(facts.batches),
        *_unclosed(facts),
        *_trainers(facts),
    ]
    if not found and facts.batches:
        found = [_working(facts)]
    if not facts.batches:
        found.append(
            Finding(
                "no_work",
                "no batch is open: every batch that was submitted is over",
                f"explorer-mq submit TASKS.jsonl --run {facts.run}",
            )
        )
    return found


def _server(facts: Facts) -> Finding:
    return Finding(
        "server_unreachable",
        f"the NATS server does not answer: {facts.server_error}",
        "explorer-mq doctor; then start the server, e.g. explorer-mq nats",
    )


def _failures(batches: Iterable[BatchFacts]) -> list[Finding]:
    return [
        Finding(
            "step_fails",
            f"batch {batch.name} is {batch.phase} and its next step fails: {batch.failure}",
            f"explorer-mq batch show {batch.name}; free space on the server if its store is full",
        )
        for batch in batches
        if batch.failure
    ]


def _pools(facts: Facts) -> list[Finding]:
    found = []
    for pool in facts.pools:
        if not pool.pending and not pool.leased:
            continue
        serving = [worker for worker in facts.workers if pool.name in worker.pools]
        ready = [worker for worker in serving if worker.state == "ready"]
        start = f"explorer-mq worker --run {facts.run} --worker.pools {pool.name}"
        waiting = f"{pool.pending} slices of pool {pool.name} wait"
        if not serving and pool.leased:
            found.append(
                Finding(
                    "silent_worker",
                    f"{pool.leased} slices of pool {pool.name} are leased to workers that are not "
                    "heard; they come back when their leases run out",
                    start,
                )
            )
        if not serving:
            found.append(Finding("no_worker", f"{waiting}, but no worker serves it", start))
        elif not ready:
            found.append(_not_ready(pool, serving, waiting))
    return found


def _not_ready(pool: PoolFacts, serving: Sequence[WorkerFacts], waiting: str) -> Finding:
    names = ", ".join(f"{worker.name} is {worker.state}" for worker in serving)
    states = {worker.state for worker in serving}
    if "updating" in states:
        return Finding(
            "paused_for_weights",
            f"{waiting} while weights are swapped: {names}",
            "explorer-mq worker ls",
        )
    if "starting" in states:
        return Finding(
            "engine_loading",
            f"{waiting} until an engine is loaded: {names}",
            "explorer-mq worker ls",
        )
    return Finding(
        "draining",
        f"{waiting}, but every worker is ending: {names}",
        f"explorer-mq worker --worker.pools {pool.name}",
    )


def _policies(facts: Facts) -> list[Finding]:
    return [
        Finding(
            "policy_not_loaded",
            f"worker {worker.name} is at policy version {worker.policy_version}, the newest is "
            f"{facts.policy_version}: {worker.policy_error}",
            "explorer-mq worker ls; publish the weights again",
        )
        for worker in facts.workers
        if worker.policy_error
    ]


def _stragglers(facts: Facts) -> list[Finding]:
    """Slices that have stood still the longest."""
    running = [
        (worker, one)
        for worker in facts.workers
        for one in worker.running
        if facts.now - one.progress_at >= STILL_S
    ]
    return [
        Finding(
            "straggler",
            f"task {one.task_id} of batch {one.batch_id} (slice {one.slice_number}, attempt "
            f"{one.attempt}) on worker {worker.name} has run for {facts.now - one.started_at:.0f} s, "
            f"the last {facts.now - one.progress_at:.0f} s without a token or model call",
            f"explorer-mq batch show {one.batch_id}; or lower scheduler.stall_timeout_s",
        )
        for worker, one in sorted(running, key=_progress_at)[:5]
    ]


def _progress_at(entry: tuple[WorkerFacts, RunningTaskState]) -> float:
    return entry[1].progress_at


def _retries(batches: Iterable[BatchFacts]) -> list[Finding]:
    return [
        Finding(
            "retry_pause",
            f"batch {batch.name}: {batch.waiting_retries} retries pause, the next for "
            f"{batch.next_retry_in_s:.1f} s",
            f"explorer-mq batch show {batch.name}",
        )
        for batch in batches
        if batch.waiting_retries and batch.next_retry_in_s is not None
    ]


def _unclosed(facts: Facts) -> list[Finding]:
    return [
        Finding(
            "not_finalized",
            f"batch {batch.name}: all {batch.tasks} tasks are settled, but nobody finalizes it",
            f"explorer-mq batch finalize {batch.name} --run {facts.run}",
        )
        for batch in facts.batches
        if batch.awaits_finalize and batch.phase == "running" and batch.settled == batch.tasks
    ]


def _trainers(facts: Facts) -> list[Finding]:
    return [
        Finding(
            "trainer_behind",
            f"trainer {trainer.name} holds {trainer.held} batches without an acknowledgement and has "
            f"{trainer.unread} more to read",
            "look at the trainer: it acknowledges a batch after its optimizer step",
        )
        for trainer in facts.trainers
        if trainer.held or trainer.unread
    ]


def _working(facts: Facts) -> Finding:
    busy = sum(len(worker.running) for worker in facts.workers)
    slots = sum(worker.slots for worker in facts.workers)
    pending = sum(pool.pending for pool in facts.pools)
    open_tasks = sum(batch.tasks - batch.settled for batch in facts.batches)
    return Finding(
        "working",
        f"work goes on: {open_tasks} tasks of {len(facts.batches)} batches are open, {busy} of "
        f"{slots} slots are busy, {pending} slices wait",
        "explorer-mq status",
    )
