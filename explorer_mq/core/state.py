"""A batch as a value: its state, what can happen to it, what can be due for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from explorer_mq.core.records import Report, SliceNeed, TaskWrapper
from explorer_mq.core.table import Table
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.journal import Aborted, Finalized, Finalizing, Running, Submitting

LEGAL_MOVES: dict[Phase, tuple[Phase, ...]] = {
    Phase.PENDING: (Phase.RUNNING, Phase.FINALIZING, Phase.ABORTED),
    Phase.RUNNING: (Phase.FINALIZING, Phase.ABORTED),
    Phase.FINALIZING: (Phase.FINALIZED, Phase.ABORTED),
    Phase.FINALIZED: (),
    Phase.ABORTED: (),
}
"""Every move a batch can make; the README's diagram is generated from it."""


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """The result stream holds ``report`` for ``task``."""

    task: int
    report: Report


@dataclass(frozen=True, slots=True)
class FinalizeRequested:
    """Somebody waits for the batch; ``deadline_at`` replaces the batch's own deadline if given."""

    deadline_at: float | None = None


@dataclass(frozen=True, slots=True)
class FinalizeWithdrawn:
    """Nobody waits any more."""


@dataclass(frozen=True, slots=True)
class RetryQueued:
    """These slices, by task and number, are in the queue; a crash forgets that."""

    slices: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class LateRemoved:
    """These late results are gone from the stream."""

    seqs: frozenset[int]


Event = (
    ResultArrived
    | FinalizeRequested
    | FinalizeWithdrawn
    | RetryQueued
    | LateRemoved
    | Running
    | Finalizing
    | Finalized
    | Aborted
)


class Retry(NamedTuple):
    """Missing runs of ``task`` that go out again as slice ``number``, at Unix time ``due_at``."""

    task: int
    number: int
    due_at: float


@dataclass(frozen=True, slots=True)
class BatchState:
    """Everything known about one batch; a value.

    ``settled`` counts tasks that need no further result, ``completed_runs`` and ``experiences``
    what accepted results yielded. ``retries`` are those not in the queue yet. ``enough_at`` is when
    ``min_wait_num`` tasks were settled. ``late`` holds
    sequences of results that came too late and are still to be removed.
    """

    opening: Submitting
    tasks: Table[TaskWrapper]
    phase: Phase = Phase.PENDING
    settled: int = 0
    completed_runs: int = 0
    experiences: int = 0
    retries: frozenset[Retry] = frozenset()
    enough_at: float | None = None
    requested: bool = False
    requested_until: float | None = None
    closing: Finalizing | None = None
    outcome: Finalized | Aborted | None = None
    late: frozenset[int] = frozenset()
    late_total: int = 0

    @property
    def batch(self) -> int | str:
        """The id as the user gave it."""
        return self.opening.batch

    @property
    def task_count(self) -> int:
        """Tasks the batch has."""
        return sum(group.count for group in self.opening.groups)

    @property
    def total_runs(self) -> int:
        """Runs the batch asks for."""
        return sum(group.count * group.repeat_times for group in self.opening.groups)

    @property
    def deadline_at(self) -> float:
        """Unix time at which waiting ends: the caller's deadline, else the batch's own."""
        if self.requested_until is not None:
            return self.requested_until
        return self.own_deadline_at

    @property
    def own_deadline_at(self) -> float:
        """Unix time of the deadline the batch was submitted with."""
        return self.opening.at + self.opening.deadline_s

    @property
    def is_closed(self) -> bool:
        """No result can join any more."""
        return self.phase not in (Phase.PENDING, Phase.RUNNING)


@dataclass(frozen=True, slots=True)
class PublishTasks:
    """Bring every slice that is neither queued nor answered into the queue, then mark running."""


@dataclass(frozen=True, slots=True)
class PublishRetry:
    """Queue the missing runs of ``task`` as slice ``need.number``."""

    task: int
    need: SliceNeed


@dataclass(frozen=True, slots=True)
class Close:
    """Journal ``entry``: from then on the batch's content is fixed."""

    entry: Finalizing


@dataclass(frozen=True, slots=True)
class Deliver:
    """Publish the training batch, clean the queue, then journal the end."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Journal ``aborted`` with ``reason`` and clean the queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class RemoveLate:
    """Delete these results from the stream and count them."""

    seqs: frozenset[int] = field(default_factory=frozenset)


Effect = PublishTasks | PublishRetry | Close | Deliver | Abort | RemoveLate
