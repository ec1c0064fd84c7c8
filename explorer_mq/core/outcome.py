"""What a closed batch amounts to: statuses, metrics, the manifest of its training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from explorer_mq.core.batch import needs_of
from explorer_mq.core.grouping import shape_of
from explorer_mq.core.metrics import (
    aggregate_eval_metrics,
    aggregate_metrics,
    calculate_task_level_metrics,
)
from explorer_mq.core.records import Report, TaskWrapper
from explorer_mq.core.state import BatchState
from explorer_mq.core.timeouts import durations_of
from explorer_mq_schemas.batches import (
    BatchLifecycleState,
    BatchResult,
    BatchView,
    Parts,
    TrainBatchManifest,
)
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.journal import Aborted, Finalized
from explorer_mq_schemas.tasks import Status


@dataclass(frozen=True, slots=True)
class CompletedTaskResult:
    """A task that is over: its status and the result sequences that hold its experiences.

    ``finished_seq`` is the sequence of its last result, which orders results by arrival.
    """

    task_id: int
    status: Status
    payload_seqs: tuple[int, ...]
    finished_seq: int


def completed_tasks(state: BatchState, *, partial: bool = False) -> list[CompletedTaskResult]:
    """Tasks that are over, in the order in which their last results arrived.

    Args:
        state: the batch.
        partial: count tasks that are not, but have at least one completed run. After the close
            every task that was delivered counts anyway.
    """
    found = [
        _completed(state, task, record)
        for task, record in state.tasks.items()
        if state.is_closed or not needs_of(state, task) or (partial and record.completed_runs > 0)
    ]
    return sorted(found, key=_finished)


def statuses(state: BatchState) -> list[Status]:
    """The statuses of :func:`completed_tasks`."""
    return [task.status for task in completed_tasks(state)]


def batch_metrics(state: BatchState, task_statuses: Sequence[Status]) -> dict[str, float]:
    """Metrics of the batch under the reference's names.

    Train: ``rollout/<name>/{mean,max,min}``; eval: ``eval/<set>/<name>``, where the set is the part
    of the batch id after its first slash (the whole id without one). Both add
    ``finished_task_count`` and ``failed_runs``.
    """
    per_task = [metrics for status in task_statuses for metrics in status.metrics[:1]]
    if state.opening.batch_type == "eval":
        name = str(state.batch)
        prefix = f"eval/{name.split('/', 1)[1] if '/' in name else name}"
        metrics = aggregate_eval_metrics(per_task, prefix)
    else:
        prefix = "rollout"
        metrics = aggregate_metrics(per_task, prefix)
    metrics[f"{prefix}/finished_task_count"] = float(len(task_statuses))
    metrics[f"{prefix}/failed_runs"] = float(
        sum(status.total_runs - status.completed_runs for status in task_statuses)
    )
    return metrics


def manifest(
    state: BatchState, *, run: str, stream: str, finished: int, metrics: dict[str, float]
) -> TrainBatchManifest:
    """The training batch of a closed train batch; its parts are results of ``stream``."""
    reports = [
        report
        for _, record in state.tasks.items()
        for report in sorted(record.reports, key=_number)
        if report.experiences
    ]
    lowest = [r.policy_version_min for r in reports if r.policy_version_min is not None]
    highest = [r.policy_version_max for r in reports if r.policy_version_max is not None]
    return TrainBatchManifest(
        run=run,
        batch=state.batch,
        tasks=state.task_count,
        finished_task_count=finished,
        runs=state.total_runs,
        completed_runs=state.completed_runs,
        experiences=state.experiences,
        policy_version_min=min(lowest, default=None),
        policy_version_max=max(highest, default=None),
        metrics=metrics,
        parts=Parts(
            stream=stream,
            seq=tuple(report.seq for report in reports),
            experiences=tuple(report.experiences for report in reports),
            bytes=tuple(report.payload_bytes for report in reports),
        ),
    )


def end_entry(
    state: BatchState, *, finished: int, metrics: dict[str, float], manifest_seq: int | None
) -> Finalized | Aborted:
    """The journal entry that ends a batch whose content was delivered."""
    if state.closing is not None and state.closing.reason == "aborted":
        return Aborted(
            batch=state.batch,
            batch_type=state.opening.batch_type,
            reason=state.closing.abort_reason,
            finished_task_count=finished,
            completed_runs=state.completed_runs,
            experiences=state.experiences,
            metrics=metrics,
            manifest_seq=manifest_seq,
        )
    attempts = [
        (report.runs, report.seconds)
        for _, record in state.tasks.items()
        for report in record.reports
        if report.is_success
    ]
    return Finalized(
        batch=state.batch,
        batch_type=state.opening.batch_type,
        finished_task_count=finished,
        completed_runs=state.completed_runs,
        experiences=state.experiences,
        metrics=metrics,
        manifest_seq=manifest_seq,
        durations=durations_of(attempts),
        rewards=_rewards(state) if state.opening.note else (),
    )


def _rewards(state: BatchState) -> tuple[float | None, ...]:
    """Mean reward of each task over its completed runs; runs without a reward do not count."""
    found: list[float | None] = [None] * state.task_count
    for task, record in state.tasks.items():
        rewards = [
            float(metrics["reward"])
            for report in record.reports
            for metrics in report.run_metrics()
            if "reward" in metrics
        ]
        if rewards:
            found[task] = sum(rewards) / len(rewards)
    return tuple(found)


def batch_result(state: BatchState) -> BatchResult:
    """What finalize returns for a batch that is over.

    Raises:
        InvalidRequest: it is not over.
    """
    entry = state.outcome
    if entry is None:
        raise InvalidRequest(f"batch {state.batch!r} is still {state.phase}")
    return BatchResult(
        batch_id=state.batch,
        batch_type=entry.batch_type,
        state=state.phase,
        finished_task_count=entry.finished_task_count,
        tasks=state.task_count,
        runs=state.total_runs,
        completed_runs=entry.completed_runs,
        experiences=entry.experiences,
        late_results=state.late_total,
        note=state.opening.note,
        rewards=() if isinstance(entry, Aborted) else entry.rewards,
        metrics=entry.metrics,
        reason=entry.reason if isinstance(entry, Aborted) else "",
    )


def view(state: BatchState, *, with_statuses: bool = False) -> BatchView:
    """Progress of the batch for people."""
    found = statuses(state) if with_statuses else []
    reason = ""
    if state.phase is BatchLifecycleState.FINALIZING and state.closing is not None:
        reason = state.closing.reason
    return BatchView(
        batch_id=state.batch,
        batch_type=state.opening.batch_type,
        state=state.phase,
        tasks=state.task_count,
        settled_tasks=state.settled,
        runs=state.total_runs,
        completed_runs=state.completed_runs,
        failed_runs=sum(s.total_runs - s.completed_runs for s in found),
        experiences=state.experiences,
        late_results=state.late_total,
        submitted_at=state.opening.at,
        deadline_at=state.deadline_at,
        reason=reason,
        statuses=tuple(found),
    )


def _finished(task: CompletedTaskResult) -> int:
    return task.finished_seq


def _number(report: Report) -> int:
    return report.number


def _completed(state: BatchState, task: int, record: TaskWrapper) -> CompletedTaskResult:
    repeat, _ = shape_of(state.opening.groups, task)
    runs = [metrics for report in record.reports for metrics in report.run_metrics()]
    is_eval = state.opening.batch_type == "eval"
    done = record.completed_runs
    status = Status(
        completed_runs=done,
        total_runs=repeat,
        metrics=(calculate_task_level_metrics(runs, is_eval=is_eval, repeat_times=repeat),),
        message=None if done == repeat else _partial_text(record, done, repeat),
        task_id=task,
    )
    return CompletedTaskResult(
        task_id=task,
        status=status,
        payload_seqs=tuple(report.seq for report in record.reports if report.experiences),
        finished_seq=record.reports[-1].seq,
    )


def _partial_text(record: TaskWrapper, done: int, total: int) -> str:
    first = record.first_error
    cause = (
        f"First error: {first}"
        if first
        else "Remaining runs were cancelled during scheduler cleanup."
    )
    return f"{done}/{total} runs completed successfully. {cause}" if done else first or cause
