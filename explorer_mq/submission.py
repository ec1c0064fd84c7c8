"""From a caller's tasks to the journal entry that makes them a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from explorer_mq.bus.objects import put_object
from explorer_mq.core.batch import open_batch
from explorer_mq.core.grouping import task_groups
from explorer_mq.live import LiveBatch
from explorer_mq.settings import SchedulerSettings
from explorer_mq.streams import RunStreams
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.journal import Submitting
from explorer_mq_schemas.tasks import BatchType, Task

INLINE_TASKS_BYTES = 64 << 10
"""Batches up to this size are journalled with their tasks, which saves a round trip."""

DEADLINE_MARGIN_S = 10.0
"""Added to the default batch deadline, so that the last attempt can report its own time-out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How a batch closes; see :meth:`RolloutCoordinator.submit_batch`."""

    batch_type: BatchType = "train"
    min_wait_num: int | None = None
    return_partial: bool = False
    auto_finalize: bool = False
    deadline_s: float | None = None
    collected: bool = False
    note: dict[str, Any] = field(default_factory=dict)


async def new_batch(
    streams: RunStreams,
    settings: SchedulerSettings,
    *,
    batch_id: int | str,
    tasks: Sequence[Task],
    options: BatchOptions,
    results_seq: int,
) -> LiveBatch:
    """The batch as it is before its opening is journalled; large ones are stored on the way.

    ``results_seq`` is a sequence of the result stream before which there is no result of it.

    Raises:
        InvalidRequest: a task has no runs, or ``min_wait_num`` is out of range.
    """
    groups = task_groups(tasks, settings.max_repeat_times_per_runner)
    wanted = options.min_wait_num
    if wanted is not None and not 1 <= wanted <= len(tasks):
        raise InvalidRequest(f"batch {batch_id!r}: min_wait_num {wanted} is not in 1..{len(tasks)}")
    attempts = settings.max_retry_times + 1
    lines = [task.encode() for task in tasks]
    text = b"\n".join(lines)
    stored = len(text) > INLINE_TASKS_BYTES
    bus = streams.bus
    prefix = bus.names.object(str(batch_id), "tasks", new_id("upload"))
    over_rollout = settings.over_rollout
    entry = Submitting(
        batch=batch_id,
        batch_type=options.batch_type,
        groups=groups,
        at=bus.now(),
        tasks=await put_object(streams.publisher, prefix, text) if stored else None,
        inline="" if stored else text.decode(),
        results_seq=results_seq,
        deadline_s=options.deadline_s
        or settings.batch_deadline_s
        or settings.max_timeout_s * attempts + DEADLINE_MARGIN_S,
        timeout_s=settings.max_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        max_attempts=attempts,
        retry_first_s=settings.retry_first_s,
        retry_longest_s=settings.retry_longest_s,
        min_wait_num=wanted,
        grace_s=over_rollout.wait_after_min_s,
        return_partial=options.return_partial or over_rollout.return_partial_tasks,
        auto_finalize=options.auto_finalize,
        collected=options.collected,
        note=options.note,
    )
    return LiveBatch(open_batch(entry), lines)
