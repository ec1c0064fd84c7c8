"""Training batches as trainers see them, and batch results as explorers see them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from explorer_mq_schemas.messages import Message
from explorer_mq_schemas.tasks import BatchType, Status


class BatchLifecycleState(StrEnum):
    """Phases of a batch; ``finalized`` and ``aborted`` are final."""

    PENDING = "pending"
    RUNNING = "running"
    FINALIZING = "finalizing"
    FINALIZED = "finalized"
    ABORTED = "aborted"


class Parts(Message):
    """Where a training batch's packed experiences are, as columns of equal length.

    Part ``i`` is the message with sequence ``seq[i]`` of ``stream``, holding ``experiences[i]``
    experiences in ``bytes[i]`` bytes. Parts are ordered by task, then slice.
    """

    stream: str
    seq: tuple[int, ...] = ()
    experiences: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()


class TrainBatchManifest(Message):
    """A finished training batch, published once and whole.

    ``tasks`` counts tasks submitted, ``finished_task_count`` those with a status, ``runs`` the runs
    asked for and ``completed_runs`` those delivered. Policy versions are the lowest and highest that
    sampled a token of the batch.
    """

    run: str
    batch: int | str
    batch_type: BatchType = "train"
    tasks: int = Field(ge=0)
    finished_task_count: int = Field(ge=0)
    runs: int = Field(ge=0)
    completed_runs: int = Field(ge=0)
    experiences: int = Field(ge=0)
    policy_version_min: int | None = None
    policy_version_max: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    parts: Parts


class BatchResult(Message):
    """What finalize and ``get_batch_result`` return.

    ``tasks`` and ``runs`` were asked for; ``finished_task_count`` tasks have a status,
    ``completed_runs`` yielded ``experiences``. ``late_results`` came after the close and were removed.
    ``note`` is the submitter's own; with one, ``rewards`` is the mean reward of each task.
    """

    batch_id: int | str
    batch_type: BatchType
    state: BatchLifecycleState
    finished_task_count: int
    tasks: int = 0
    runs: int = 0
    completed_runs: int = 0
    experiences: int = 0
    late_results: int = 0
    note: dict[str, Any] = Field(default_factory=dict)
    rewards: tuple[float | None, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)
    reason: str = ""


class BatchView(Message):
    """A batch's progress, for people and tools."""

    batch_id: int | str
    batch_type: BatchType
    state: BatchLifecycleState
    tasks: int
    settled_tasks: int
    runs: int
    completed_runs: int
    failed_runs: int
    experiences: int
    late_results: int = 0
    submitted_at: float
    deadline_at: float | None = None
    reason: str = ""
    statuses: tuple[Status, ...] = ()
