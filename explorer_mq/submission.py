"""From a caller's tasks to the journal entry that makes them a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.objects import put_object
from explorer_mq.bus.publisher import Publisher
from explorer_mq.core.grouping import task_groups
from explorer_mq.settings import SchedulerSettings
from explorer_mq_schemas.errors import InvalidRequest
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


async def opening_entry(
    bus: Bus,
    publisher: Publisher,
    settings: SchedulerSettings,
    *,
    batch_id: int | str,
    tasks: Sequence[Task],
    options: BatchOptions,
    results_seq: int,
) -> tuple[Submitting, list[bytes]]:
    """The entry that opens the batch, and the encoded tasks; large ones are stored on the way.

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
    prefix = bus.names.object(str(batch_id), "tasks")
    entry = Submitting(
        batch=batch_id,
        batch_type=options.batch_type,
        groups=groups,
        at=bus.now(),
        tasks=await put_object(publisher, prefix, text) if stored else None,
        inline="" if stored else text.decode(),
        results_seq=results_seq,
        deadline_s=options.deadline_s
        or settings.batch_deadline_s
        or settings.max_timeout_s * attempts + DEADLINE_MARGIN_S,
        timeout_s=settings.max_timeout_s,
        max_attempts=attempts,
        min_wait_num=wanted,
        return_partial=options.return_partial,
        auto_finalize=options.auto_finalize,
    )
    return entry, lines
