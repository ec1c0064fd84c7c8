"""The life of a batch as a fold: ``evolve`` merges events, ``decide`` says what is due.

    pending --running--> running --finalizing--> finalizing --finalized--> finalized
       |                    |                        |
       +------------------- + ------ aborted --------+

Flow: :func:`open_batch` -> :func:`evolve` per journal entry and per result -> :func:`decide` ->
effects, carried out by the coordinator, whose journal entries and results come back to ``evolve``.

``evolve`` is total over what a peer can send and merges instead of assigning: duplicates and
reordering of results cannot matter, and after the close nothing changes. ``decide`` reads state and
time only, so the effects that a crash swallowed come out again; each is idempotent by its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from explorer_mq.core.grouping import each_task, shape_of, slices_per_task
from explorer_mq.core.ranges import contains, to_ranges
from explorer_mq.core.records import Report, SliceNeed, TaskRecord, awaited
from explorer_mq.core.table import Table
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.journal import (
    Aborted,
    Finalized,
    Finalizing,
    JournalEntry,
    Running,
    Submitting,
)

LEGAL_MOVES: dict[Phase, tuple[Phase, ...]] = {
    Phase.PENDING: (Phase.RUNNING, Phase.ABORTED),
    Phase.RUNNING: (Phase.FINALIZING, Phase.ABORTED),
    Phase.FINALIZING: (Phase.FINALIZED, Phase.ABORTED),
    Phase.FINALIZED: (),
    Phase.ABORTED: (),
}
"""Every move a batch can make; the README's diagram is generated from it."""

CloseReason = Literal["complete", "enough", "deadline"]


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """The result stream holds ``report`` for ``task``; ``at`` is the stream's Unix time."""

    task: int
    report: Report
    at: float


@dataclass(frozen=True, slots=True)
class FinalizeRequested:
    """Somebody waits for the batch; ``deadline_at`` replaces the batch's own deadline if given."""

    deadline_at: float | None = None


@dataclass(frozen=True, slots=True)
class FinalizeWithdrawn:
    """Nobody waits any more."""


@dataclass(frozen=True, slots=True)
class LateRemoved:
    """These late results are gone from the stream."""

    seqs: frozenset[int]


Event = (
    ResultArrived
    | FinalizeRequested
    | FinalizeWithdrawn
    | LateRemoved
    | Running
    | Finalizing
    | Finalized
    | Aborted
)


@dataclass(frozen=True, slots=True)
class BatchState:
    """Everything known about one batch; a value.

    ``settled`` counts tasks that need no further result, ``completed_runs`` and ``experiences``
    what accepted results yielded. ``enough_at`` is when ``min_wait_num`` tasks were settled. ``late``
    holds sequences of results that came too late and are still to be removed.
    """

    opening: Submitting
    tasks: Table[TaskRecord]
    phase: Phase = Phase.PENDING
    settled: int = 0
    completed_runs: int = 0
    experiences: int = 0
    retries: frozenset[tuple[int, int]] = frozenset()
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
    def total_runs(self) -> int:
        """Runs the batch asks for."""
        return sum(group.count * group.repeat_times for group in self.opening.groups)

    @property
    def deadline_at(self) -> float:
        """Unix time at which waiting ends: the caller's deadline, else the batch's own."""
        if self.requested_until is not None:
            return self.requested_until
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
    """Publish the training batch, clean the queue, then journal ``finalized``."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Journal ``aborted`` with ``reason`` and clean the queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class RemoveLate:
    """Delete these results from the stream and count them."""

    seqs: frozenset[int] = field(default_factory=frozenset)


Effect = PublishTasks | PublishRetry | Close | Deliver | Abort | RemoveLate


def open_batch(opening: Submitting) -> BatchState:
    """The state right after ``opening`` was journalled."""
    return BatchState(opening, Table.empty(sum(group.count for group in opening.groups)))


def evolve(state: BatchState, event: Event) -> BatchState:
    """The state after ``event``; an event that cannot apply changes nothing."""
    match event:
        case ResultArrived():
            return _merge_result(state, event)
        case FinalizeRequested(deadline_at):
            return replace(state, requested=True, requested_until=deadline_at)
        case FinalizeWithdrawn():
            return replace(state, requested=False, requested_until=None)
        case LateRemoved(seqs):
            return replace(state, late=state.late - seqs)
        case Running():
            return _move(state, Phase.RUNNING)
        case Finalizing():
            return _close(state, event)
        case Finalized():
            return _finish(state, event)
        case Aborted():
            return _abort(state, event)


def decide(state: BatchState, now: float) -> tuple[Effect, ...]:
    """What is due at ``now``, from state alone."""
    effects: list[Effect] = [RemoveLate(state.late)] if state.late else []
    match state.phase:
        case Phase.PENDING:
            effects.append(PublishTasks())
        case Phase.RUNNING:
            effects.extend(_decide_running(state, now))
        case Phase.FINALIZING:
            effects.append(Deliver())
        case _:
            pass
    return tuple(effects)


def next_wake(state: BatchState) -> float | None:
    """When ``decide`` may say something new although nothing happened; None: only events matter."""
    if state.phase is not Phase.RUNNING or not (state.requested or state.opening.auto_finalize):
        return None
    if state.enough_at is None:
        return state.deadline_at
    return min(state.deadline_at, state.enough_at + state.opening.grace_s)


def close_reason(state: BatchState, now: float) -> CloseReason | None:
    """Why the batch may close at ``now``; None: it may not.

    ``complete``: every task is settled. ``enough``: ``min_wait_num`` tasks are and the grace time
    is over. ``deadline``: the time is up and what is there suffices: an eval takes what it has, a
    train batch needs ``min_wait_num`` settled tasks, or any completed run with ``return_partial``.
    """
    opening = state.opening
    if state.settled == state.tasks.size:
        return "complete"
    enough = opening.min_wait_num is not None and state.settled >= opening.min_wait_num
    if state.enough_at is not None and now >= state.enough_at + opening.grace_s:
        return "enough"
    partial = opening.return_partial and state.completed_runs > 0
    if now >= state.deadline_at and (opening.batch_type == "eval" or enough or partial):
        return "deadline"
    return None


def expired(state: BatchState, now: float) -> bool:
    """The deadline is over and the batch cannot close with what it has."""
    return (
        state.phase is Phase.RUNNING
        and now >= state.deadline_at
        and close_reason(state, now) is None
    )


def needs_of(state: BatchState, task: int) -> tuple[SliceNeed, ...]:
    """Slices of ``task`` whose results are awaited."""
    repeat, per_slice = shape_of(state.opening.groups, task)
    reports = (state.tasks.get(task) or TaskRecord()).reports
    return awaited(reports, repeat, per_slice, state.opening.max_attempts)


def open_needs(state: BatchState) -> Iterator[tuple[int, SliceNeed]]:
    """Task number and need of every slice of the batch that is awaited, in task order."""
    for task, repeat, per_slice in each_task(state.opening.groups):
        reports = (state.tasks.get(task) or TaskRecord()).reports
        for need in awaited(reports, repeat, per_slice, state.opening.max_attempts):
            yield task, need


def replay(
    entries: Iterable[JournalEntry], results: Iterable[tuple[str, ResultArrived]]
) -> dict[str, BatchState]:
    """State of every batch the journal knows, by id text, from its entries and the results."""
    states: dict[str, BatchState] = {}
    for entry in entries:
        name = str(entry.batch)
        if isinstance(entry, Submitting):
            states[name] = open_batch(entry)
        elif name in states:
            states[name] = evolve(states[name], entry)
    for name, event in results:
        if name in states:
            states[name] = evolve(states[name], event)
    return states


def _move(state: BatchState, phase: Phase) -> BatchState:
    return replace(state, phase=phase) if phase in LEGAL_MOVES[state.phase] else state


def _merge_result(state: BatchState, event: ResultArrived) -> BatchState:
    seq = event.report.seq
    if state.is_closed:
        if state.closing is None or not contains(state.closing.results, seq):
            return _note_late(state, {seq})
        if state.outcome is not None:
            return state
    if not 0 <= event.task < state.tasks.size:
        return _note_late(state, {seq})
    return _merge_report(state, event)


def _merge_report(state: BatchState, event: ResultArrived) -> BatchState:
    before = state.tasks.get(event.task) or TaskRecord()
    after = before.merge(event.report)
    if after is before:
        return state
    opening = state.opening
    repeat, per_slice = shape_of(opening.groups, event.task)
    initial = slices_per_task(repeat, per_slice)
    was = awaited(before.reports, repeat, per_slice, opening.max_attempts)
    now = awaited(after.reports, repeat, per_slice, opening.max_attempts)
    settled = state.settled + (not now) - (not was)
    reached = opening.min_wait_num is not None and settled >= opening.min_wait_num
    retries = {(event.task, need.number) for need in now if need.number >= initial}
    old_retries = {(event.task, need.number) for need in was if need.number >= initial}
    return replace(
        state,
        tasks=state.tasks.set(event.task, after),
        settled=settled,
        completed_runs=state.completed_runs + after.completed_runs - before.completed_runs,
        experiences=state.experiences + after.experiences - before.experiences,
        retries=(state.retries - old_retries) | retries,
        enough_at=event.at if reached and state.enough_at is None else state.enough_at,
    )


def _note_late(state: BatchState, seqs: set[int]) -> BatchState:
    new = frozenset(seqs) - state.late
    return replace(state, late=state.late | new, late_total=state.late_total + len(new))


def _close(state: BatchState, entry: Finalizing) -> BatchState:
    """Fix the content: reports outside the entry's ranges leave the table and count as late."""
    if Phase.FINALIZING not in LEGAL_MOVES[state.phase]:
        return state
    outside = {
        report.seq
        for _, record in state.tasks.items()
        for report in record.reports
        if not contains(entry.results, report.seq)
    }
    closed = replace(state, phase=Phase.FINALIZING, closing=entry, retries=frozenset())
    return _note_late(_without(closed, outside), outside) if outside else closed


def _finish(state: BatchState, entry: Finalized) -> BatchState:
    """Only the outcome is kept: the table's content is in the training batch and its metrics."""
    if Phase.FINALIZED not in LEGAL_MOVES[state.phase]:
        return state
    return replace(
        state,
        phase=Phase.FINALIZED,
        outcome=entry,
        tasks=Table.empty(state.tasks.size),
        settled=entry.finished_task_count,
        completed_runs=entry.completed_runs,
        experiences=entry.experiences,
    )


def _abort(state: BatchState, entry: Aborted) -> BatchState:
    if Phase.ABORTED not in LEGAL_MOVES[state.phase]:
        return state
    held = {report.seq for _, record in state.tasks.items() for report in record.reports}
    aborted = replace(
        state,
        phase=Phase.ABORTED,
        outcome=entry,
        tasks=Table.empty(state.tasks.size),
        closing=None,
        retries=frozenset(),
        settled=entry.finished_task_count,
        completed_runs=0,
        experiences=0,
    )
    return _note_late(aborted, held)


def _without(state: BatchState, seqs: set[int]) -> BatchState:
    tasks, runs, experiences = state.tasks, 0, 0
    for index, record in state.tasks.items():
        kept = record.keep({report.seq for report in record.reports} - seqs)
        if kept.reports != record.reports:
            tasks = tasks.set(index, kept if kept.reports else None)
        runs += kept.completed_runs
        experiences += kept.experiences
    return replace(state, tasks=tasks, completed_runs=runs, experiences=experiences)


def _decide_running(state: BatchState, now: float) -> Sequence[Effect]:
    if state.requested or state.opening.auto_finalize:
        reason = close_reason(state, now)
        if reason is not None:
            return [Close(_closing_entry(state, reason))]
        if state.opening.auto_finalize and expired(state, now):
            return [Abort(_expiry_text(state))]
    return [
        PublishRetry(task, need)
        for task in sorted({task for task, _ in state.retries})
        for need in needs_of(state, task)
        if (task, need.number) in state.retries
    ]


def _closing_entry(state: BatchState, reason: CloseReason) -> Finalizing:
    seqs = (
        report.seq
        for index, record in state.tasks.items()
        if reason == "complete" or _belongs(state, index, record)
        for report in record.reports
    )
    return Finalizing(batch=state.batch, results=to_ranges(seqs), reason=reason)


def _belongs(state: BatchState, task: int, record: TaskRecord) -> bool:
    """A task of an incomplete batch is delivered if settled, or partial and that was asked for."""
    if not needs_of(state, task):
        return True
    return state.opening.return_partial and record.completed_runs > 0


def _expiry_text(state: BatchState) -> str:
    return (
        f"deadline of {state.opening.deadline_s:g} s passed with {state.settled} of "
        f"{state.tasks.size} tasks settled"
    )
