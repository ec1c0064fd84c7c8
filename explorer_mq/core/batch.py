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

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from explorer_mq.core.grouping import each_task, shape_of, slices_per_task
from explorer_mq.core.ranges import contains, to_ranges
from explorer_mq.core.records import SliceNeed, TaskWrapper, awaited, due_at
from explorer_mq.core.state import (
    LEGAL_MOVES,
    Abort,
    BatchState,
    Close,
    Deliver,
    Effect,
    Event,
    FinalizeRequested,
    FinalizeWithdrawn,
    LateRemoved,
    PublishRetry,
    PublishTasks,
    RemoveLate,
    ResultArrived,
    Retry,
    RetryQueued,
)
from explorer_mq.core.table import Table
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.journal import (
    Aborted,
    BatchEntry,
    CloseReason,
    Finalized,
    Finalizing,
    Running,
    Submitting,
)


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
        case RetryQueued(slices):
            waiting = {retry for retry in state.retries if retry[:2] not in slices}
            return replace(state, retries=frozenset(waiting))
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


def next_wake(state: BatchState, now: float) -> float | None:
    """When after ``now`` ``decide`` may say something new although nothing happened.

    None: only events matter.
    """
    if state.phase is not Phase.RUNNING:
        return None
    times = [retry.due_at for retry in state.retries]
    if state.requested or state.opening.auto_finalize:
        times += [state.deadline_at, state.own_deadline_at]
        if state.enough_at is not None:
            times.append(state.enough_at + state.opening.grace_s)
    return min((time for time in times if time > now), default=None)


def close_reason(state: BatchState, now: float) -> CloseReason | None:
    """Why the batch may close at ``now``; None: it may not.

    ``complete``: every task is settled. ``enough``: ``min_wait_num`` tasks are and the grace time
    is over. ``deadline``: the time is up and what is there suffices: an eval takes what it has, a
    train batch needs ``min_wait_num`` settled tasks, or any completed run with ``return_partial``.
    """
    opening = state.opening
    if state.settled == state.task_count:
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
    return not state.is_closed and now >= state.deadline_at and close_reason(state, now) is None


def needs_of(state: BatchState, task: int) -> tuple[SliceNeed, ...]:
    """Slices of ``task`` whose results are awaited."""
    repeat, per_slice = shape_of(state.opening.groups, task)
    reports = (state.tasks.get(task) or TaskWrapper()).reports
    return awaited(reports, repeat, per_slice, state.opening.max_attempts)


def open_needs(state: BatchState) -> Iterator[tuple[int, SliceNeed]]:
    """Task number and need of every slice of the batch that is awaited, in task order."""
    for task, repeat, per_slice in each_task(state.opening.groups):
        reports = (state.tasks.get(task) or TaskWrapper()).reports
        for need in awaited(reports, repeat, per_slice, state.opening.max_attempts):
            yield task, need


def replay(
    entries: Iterable[BatchEntry],
    results: Iterable[tuple[str, ResultArrived]],
    states: Mapping[str, BatchState] | None = None,
) -> dict[str, BatchState]:
    """State of every batch, by id text, from journal entries and results; ``states`` came before."""
    states = dict(states or {})
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
    if not 0 <= event.task < state.task_count:
        return _note_late(state, {seq})
    return _merge_report(state, event)


def _merge_report(state: BatchState, event: ResultArrived) -> BatchState:
    before = state.tasks.get(event.task) or TaskWrapper()
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
    after_retries = retries_of(opening, event.task, now, initial)
    before_retries = retries_of(opening, event.task, was, initial)
    at = event.report.at
    return replace(
        state,
        tasks=state.tasks.set(event.task, after),
        settled=settled,
        completed_runs=state.completed_runs + after.completed_runs - before.completed_runs,
        experiences=state.experiences + after.experiences - before.experiences,
        retries=(state.retries - (before_retries - after_retries))
        | (after_retries - before_retries),
        enough_at=at
        if reached and state.enough_at is None and not state.is_closed
        else state.enough_at,
    )


def retries_of(
    opening: Submitting, task: int, needs: Sequence[SliceNeed], initial: int
) -> frozenset[Retry]:
    """The retries among the awaited slices ``needs`` of a task that began as ``initial`` slices."""
    return frozenset(
        Retry(task, need.number, due_at(opening, task, need))
        for need in needs
        if need.number >= initial
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
    closed = replace(
        state, phase=Phase.FINALIZING, closing=entry, retries=frozenset(), enough_at=None
    )
    return _note_late(_without(closed, outside), outside) if outside else closed


def _finish(state: BatchState, entry: Finalized) -> BatchState:
    if Phase.FINALIZED not in LEGAL_MOVES[state.phase]:
        return state
    return _end(state, Phase.FINALIZED, entry)


def _abort(state: BatchState, entry: Aborted) -> BatchState:
    """Unless the batch was closed to be delivered first, what it held is late."""
    if Phase.ABORTED not in LEGAL_MOVES[state.phase]:
        return state
    if state.closing is not None:
        return _end(state, Phase.ABORTED, entry)
    held = {report.seq for _, record in state.tasks.items() for report in record.reports}
    return _note_late(_end(state, Phase.ABORTED, entry), held)


def _end(state: BatchState, phase: Phase, entry: Finalized | Aborted) -> BatchState:
    """Only the outcome is kept: the table's content is in the training batch and its metrics."""
    return replace(
        state,
        opening=state.opening.model_copy(update={"inline": ""}),
        phase=phase,
        outcome=entry,
        tasks=Table.empty(0),
        retries=frozenset(),
        settled=entry.finished_task_count,
        completed_runs=entry.completed_runs,
        experiences=entry.experiences,
    )


def _without(state: BatchState, seqs: set[int]) -> BatchState:
    tasks, settled, runs, experiences = state.tasks, 0, 0, 0
    opening = state.opening
    for index, record in state.tasks.items():
        kept = record.keep({report.seq for report in record.reports} - seqs)
        if kept.reports != record.reports:
            tasks = tasks.set(index, kept if kept.reports else None)
        repeat, per_slice = shape_of(opening.groups, index)
        settled += not awaited(kept.reports, repeat, per_slice, opening.max_attempts)
        runs += kept.completed_runs
        experiences += kept.experiences
    return replace(
        state, tasks=tasks, settled=settled, completed_runs=runs, experiences=experiences
    )


def _decide_running(state: BatchState, now: float) -> Sequence[Effect]:
    if state.requested or state.opening.auto_finalize:
        reason = close_reason(state, now)
        if reason is not None:
            return [Close(_closing_entry(state, reason))]
        # A caller who waits for less must not end a batch that closes itself.
        if state.opening.auto_finalize and now >= state.own_deadline_at:
            return [Abort(_expiry_text(state))]
    due = sorted(retry for retry in state.retries if retry.due_at <= now)
    return [
        PublishRetry(retry.task, need)
        for retry in due
        for need in needs_of(state, retry.task)
        if need.number == retry.number
    ]


def _closing_entry(state: BatchState, reason: CloseReason) -> Finalizing:
    seqs = (
        report.seq
        for index, record in state.tasks.items()
        if reason == "complete"
        or not needs_of(state, index)
        or (state.opening.return_partial and record.completed_runs > 0)
        for report in record.reports
    )
    return Finalizing(batch=state.batch, results=to_ranges(seqs), reason=reason)


def collect_entry(state: BatchState, tasks: Collection[int]) -> Finalizing:
    """The entry that closes a batch of which the scheduler's caller has taken ``tasks``."""
    seqs = (
        report.seq
        for index, record in state.tasks.items()
        if index in tasks
        for report in record.reports
    )
    return Finalizing(batch=state.batch, results=to_ranges(seqs), reason="collected")


def abort_entry(state: BatchState, reason: str) -> Finalizing:
    """The entry that closes a batch which is given up, keeping every task with a completed run."""
    seqs = (
        report.seq
        for _, record in state.tasks.items()
        if record.completed_runs
        for report in record.reports
    )
    return Finalizing(
        batch=state.batch, results=to_ranges(seqs), reason="aborted", abort_reason=reason
    )


def _expiry_text(state: BatchState) -> str:
    return (
        f"deadline of {state.opening.deadline_s:g} s passed with {state.settled} of "
        f"{state.task_count} tasks settled"
    )
