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

    They are JSON lines, one task a line: in ``inline`` when short, else as the object ``tasks``.
    ``results_seq`` is the last sequence of the result stream before the batch: its results follow.
    ``at`` is Unix time in seconds on the server's clock; ``deadline_s`` counts from it.
    ``max_attempts`` limits each run. ``grace_s`` is how long stragglers are waited for once
    ``min_wait_num`` tasks are settled. With ``return_partial`` the deadline delivers what is there.
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
    max_attempts: int = Field(ge=1)
    min_wait_num: int | None = None
    grace_s: float = 30.0
    return_partial: bool = False
    auto_finalize: bool = False


class Running(_Entry):
    """All slices of the batch are in the queue."""

    entry: Literal["running"] = "running"


class Finalizing(_Entry):
    """The batch is closed; exactly the results in ``results`` belong to it.

    ``results`` are inclusive ranges of sequences of the result stream. ``reason`` is ``complete``,
    ``enough`` (min_wait_num reached and the grace time over) or ``deadline``.
    """

    entry: Literal["finalizing"] = "finalizing"
    results: tuple[tuple[int, int], ...]
    reason: Literal["complete", "enough", "deadline"]


class Finalized(_Entry):
    """The batch is done: its training batch (if any) is published, its metrics are known."""

    entry: Literal["finalized"] = "finalized"
    batch_type: BatchType
    finished_task_count: int
    completed_runs: int
    experiences: int
    metrics: dict[str, float]
    manifest_seq: int | None = None


class Aborted(_Entry):
    """The batch was given up; its results are not delivered."""

    entry: Literal["aborted"] = "aborted"
    batch_type: BatchType
    reason: str
    finished_task_count: int = 0


JournalEntry = Annotated[
    Submitting | Running | Finalizing | Finalized | Aborted, Field(discriminator="entry")
]
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
