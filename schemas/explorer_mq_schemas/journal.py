"""Journal entries: the coordinator's decisions about batches, one writer, replayable.

    submitting -> running -> finalizing -> finalized
         |           |            |
         +-----------+------------+--> aborted

The state of a batch is the fold of its journal entries and of its result headers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.messages import Message, ObjectRef, first_fault
from explorer_mq_schemas.tasks import BatchType


class TaskGroup(Message):
    """``count`` consecutive tasks of a batch that have the same number of runs and slices."""

    count: int = Field(ge=1)
    repeat_times: int = Field(ge=1)
    runs_per_slice: int = Field(ge=1)


class _Entry(Message):
    entry: str
    batch: int | str

    def _wire_fields(self) -> dict[str, Any]:
        # The tag is a default, yet it always stays: it tells the entries apart.
        return {**super()._wire_fields(), "entry": self.entry}


class Submitting(_Entry):
    """The batch exists: its tasks are stored and will reach the queue.

    With ``collected`` the scheduler's caller takes the results itself: no training batch is made.

    They are JSON lines, one task a line: in ``inline`` when short, else as the object ``tasks``.
    ``results_seq`` is the last sequence of the result stream before the batch: its results follow.
    ``at`` is Unix time in seconds on the server's clock; ``deadline_s`` counts from it.
    ``max_attempts`` limits each run; the pause before a retry is ``retry_first_s``, doubled with each
    attempt up to ``retry_longest_s``. ``grace_s`` is how long stragglers are waited for once
    ``min_wait_num`` tasks are settled. With ``return_partial`` the deadline delivers what is there.
    ``note`` is the submitter's own: an explorer keeps its state there, so that a step and the state
    after it are stored together.
    """

    entry: Literal["submitting"] = "submitting"
    batch_type: BatchType
    groups: tuple[TaskGroup, ...]
    at: float
    tasks: ObjectRef | None = None
    inline: str = ""
    results_seq: int = Field(ge=0)
    deadline_s: float = Field(gt=0)
    timeout_s: float = Field(gt=0)
    stall_timeout_s: float | None = Field(default=None, gt=0)
    max_attempts: int = Field(ge=1)
    retry_first_s: float = Field(default=0.5, ge=0)
    retry_longest_s: float = Field(default=30.0, ge=0)
    min_wait_num: int | None = None
    grace_s: float = 30.0
    return_partial: bool = False
    auto_finalize: bool = False
    collected: bool = False
    note: dict[str, Any] = Field(default_factory=dict)


class Running(_Entry):
    """All slices of the batch are in the queue."""

    entry: Literal["running"] = "running"


CloseReason = Literal["complete", "enough", "deadline", "collected", "aborted"]


class Finalizing(_Entry):
    """The batch is closed; exactly the results in ``results`` belong to it.

    ``results`` are inclusive ranges of sequences of the result stream. ``reason`` is ``complete``,
    ``enough`` (min_wait_num reached and the grace time over), ``deadline``, ``collected`` (the
    scheduler's caller has taken the results) or ``aborted``: what is there is delivered, and the
    batch then ends as aborted for ``abort_reason``.
    """

    entry: Literal["finalizing"] = "finalizing"
    results: tuple[tuple[int, int], ...]
    reason: CloseReason
    abort_reason: str = ""


class Finalized(_Entry):
    """The batch is done: its training batch (if any) is published, its metrics are known.

    ``durations`` holds, by number of runs in a slice, how many attempts succeeded and their seconds
    in all. ``rewards`` is the mean reward of each task, None where no run completed; only for batches
    with a note.
    """

    entry: Literal["finalized"] = "finalized"
    batch_type: BatchType
    finished_task_count: int
    completed_runs: int
    experiences: int
    metrics: dict[str, float]
    manifest_seq: int | None = None
    durations: dict[int, tuple[int, float]] = Field(default_factory=dict)
    rewards: tuple[float | None, ...] = ()


class Aborted(_Entry):
    """The batch was given up; only what ``finalizing`` named before is delivered, if anything."""

    entry: Literal["aborted"] = "aborted"
    batch_type: BatchType
    reason: str
    finished_task_count: int = 0
    completed_runs: int = 0
    experiences: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    manifest_seq: int | None = None


class Snapshot(Message):
    """All state as of journal sequence ``journal_seq`` and result sequence ``results_seq``.

    It replaces every entry up to ``journal_seq``; replay goes on right after it.
    """

    entry: Literal["snapshot"] = "snapshot"
    state: ObjectRef
    journal_seq: int = Field(ge=0)
    results_seq: int = Field(ge=0)

    def _wire_fields(self) -> dict[str, Any]:
        return {**super()._wire_fields(), "entry": self.entry}


BatchEntry = Submitting | Running | Finalizing | Finalized | Aborted
JournalEntry = Annotated[BatchEntry | Snapshot, Field(discriminator="entry")]
_ADAPTER: TypeAdapter[JournalEntry] = TypeAdapter(JournalEntry)


def decode_entry(data: bytes | bytearray) -> JournalEntry:
    """The journal entry that ``data`` holds.

    Raises:
        ContractError: it holds none this version knows.
    """
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise ContractError(f"journal entry: {first_fault(error)}") from error
