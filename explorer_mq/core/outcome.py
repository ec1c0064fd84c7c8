"""What a closed batch amounts to: statuses, metrics, the manifest of its training batch."""

from __future__ import annotations

from collections.abc import Sequence

from explorer_mq.core.batch import BatchState, needs_of
from explorer_mq.core.grouping import shape_of
from explorer_mq.core.metrics import (
    aggregate_eval_metrics,
    aggregate_metrics,
    calculate_task_level_metrics,
)
from explorer_mq.core.records import Report, TaskRecord
from explorer_mq_schemas.batches import BatchView, Parts, TrainBatchManifest
from explorer_mq_schemas.tasks import Status


def statuses(state: BatchState) -> list[Status]:
    """One status per task that is settled, in the order in which their last results arrived.

    After the close every task that was delivered counts, also a partial one.
    """
    delivered = [
        (record.reports[-1].seq, task, record)
        for task, record in state.tasks.items()
        if state.is_closed or not needs_of(state, task)
    ]
    return [_status(state, task, record) for _, task, record in sorted(delivered, key=_first)]


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
        tasks=state.tasks.size,
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


def view(state: BatchState, *, with_statuses: bool = False) -> BatchView:
    """Progress of the batch for people."""
    found = statuses(state) if with_statuses else []
    reason = ""
    if state.outcome is not None and state.outcome.entry == "aborted":
        reason = state.outcome.reason
    elif state.closing is not None:
        reason = state.closing.reason
    return BatchView(
        batch_id=state.batch,
        batch_type=state.opening.batch_type,
        state=state.phase,
        tasks=state.tasks.size,
        settled_tasks=state.settled,
        runs=state.total_runs,
        completed_runs=state.completed_runs,
        failed_runs=sum(s.total_runs - s.completed_runs for s in found),
        experiences=state.experiences,
        submitted_at=state.opening.at,
        deadline_at=state.deadline_at,
        reason=reason,
        statuses=tuple(found),
    )


def _first(entry: tuple[int, int, TaskRecord]) -> int:
    return entry[0]


def _number(report: Report) -> int:
    return report.number


def _status(state: BatchState, task: int, record: TaskRecord) -> Status:
    repeat, _ = shape_of(state.opening.groups, task)
    runs = [metrics for report in record.reports for metrics in report.run_metrics()]
    is_eval = state.opening.batch_type == "eval"
    done = record.completed_runs
    return Status(
        completed_runs=done,
        total_runs=repeat,
        metrics=(calculate_task_level_metrics(runs, is_eval=is_eval, repeat_times=repeat),),
        message=None if done == repeat else _partial_text(record, done, repeat),
        task_id=task,
    )


def _partial_text(record: TaskRecord, done: int, total: int) -> str:
    first = next((report.failure for report in record.reports if report.failure), "")
    cause = (
        f"First error: {first}"
        if first
        else "Remaining runs were cancelled when the batch was closed."
    )
    return f"{done}/{total} runs completed successfully. {cause}" if done else first or cause
