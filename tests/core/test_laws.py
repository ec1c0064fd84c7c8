"""Laws of the fold that hold for any events in any order, before and after the close."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from explorer_mq.core.batch import (
    abort_entry,
    close_reason,
    collect_entry,
    decide,
    evolve,
    expired,
    needs_of,
    next_wake,
    open_batch,
    open_needs,
    replay,
)
from explorer_mq.core.snapshot import RunSnapshot, digest, dump, load
from explorer_mq.core.state import (
    LEGAL_MOVES,
    Abort,
    Close,
    FinalizeRequested,
    FinalizeWithdrawn,
    LateRemoved,
    PublishRetry,
    RemoveLate,
    ResultArrived,
    RetryQueued,
)
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.journal import Aborted, Finalized, Finalizing, Running
from tests.core.test_batch import TASKS, arrivals, arrive, finish_all, opening, report, running

WHY = {"batch": 1, "batch_type": "train"}
END = Finalized(**WHY, finished_task_count=2, completed_runs=3, experiences=4, metrics={"m": 1.0})
ABORTED = Aborted(**WHY, reason="why", finished_task_count=1, completed_runs=1, experiences=1)
ENTRIES = {
    Phase.RUNNING: Running(batch=1),
    Phase.FINALIZING: Finalizing(batch=1, results=((1, 4),), reason="deadline"),
    Phase.FINALIZED: END,
    Phase.ABORTED: ABORTED,
}
PATHS = {
    Phase.PENDING: (),
    Phase.RUNNING: (Phase.RUNNING,),
    Phase.FINALIZING: (Phase.RUNNING, Phase.FINALIZING),
    Phase.FINALIZED: (Phase.RUNNING, Phase.FINALIZING, Phase.FINALIZED),
    Phase.ABORTED: (Phase.RUNNING, Phase.ABORTED),
}
TIMES = st.floats(990.0, 1200.0)


def fold(state, events):
    for event in events:
        state = evolve(state, event)
    return state


def at(phase, **changes):
    """A batch in ``phase`` that has been told something."""
    state = arrive(open_batch(opening(**changes)), 0, 0, 2, [0, 1])
    return fold(state, [ENTRIES[step] for step in PATHS[phase]])


def content(state):
    """All that a close fixes."""
    return replace(state, requested=False, requested_until=None, late=frozenset(), late_total=0)


@st.composite
def events(draw):
    """Anything that can happen to a batch."""
    others = st.one_of(
        st.builds(FinalizeRequested, st.none() | TIMES),
        st.just(FinalizeWithdrawn()),
        st.builds(RetryQueued, st.frozensets(st.tuples(st.integers(0, 2), st.integers(3, 8)))),
        st.builds(LateRemoved, st.frozensets(st.integers(1, 25))),
        st.sampled_from([*ENTRIES.values()]),
        st.builds(
            Finalizing,
            batch=st.just(1),
            results=st.just(((1, 9),)),
            reason=st.sampled_from(["complete", "aborted"]),
        ),
    )
    return draw(st.permutations([*draw(arrivals()), *draw(st.lists(others, max_size=10))]))


@pytest.mark.parametrize("before", list(Phase))
@pytest.mark.parametrize("after", list(ENTRIES))
def test_only_legal_moves_are_made(before, after):
    state = at(before)
    moved = evolve(state, ENTRIES[after])
    assert state.phase is before
    assert moved.phase is (after if after in LEGAL_MOVES[before] else before)
    assert moved.phase is after or moved == state


@given(arrivals(), st.randoms(), st.sampled_from([None, 1, 2, 3]))
def test_order_of_results_matters_to_nothing_but_the_start_of_grace(found, random, min_wait):
    straight = fold(running(min_wait_num=min_wait), found)
    random.shuffle(found)
    mixed = fold(running(min_wait_num=min_wait), found)
    assert (mixed.enough_at is None) == (straight.enough_at is None)
    assert replace(mixed, enough_at=straight.enough_at) == straight


@given(events())
def test_every_event_may_come_twice(found):
    once, twice = running(), running()
    for event in found:
        once = evolve(once, event)
        twice = evolve(evolve(twice, event), event)
    assert twice == once


@given(st.sampled_from([Phase.FINALIZED, Phase.ABORTED]), events())
def test_closed_batch_absorbs_everything_but_late_results(phase, found):
    before = at(phase)
    after = fold(before, found)
    assert content(after) == content(before)
    assert after.late_total >= before.late_total
    assert set(map(type, decide(after, 1e9))) <= {RemoveLate}
    assert next_wake(after, 0.0) is None


@given(events())
def test_batch_closes_once(found):
    first = None
    state = running()
    for event in found:
        state = evolve(state, event)
        first = first or state.closing
        assert state.closing == first
        assert not (state.is_closed and any(isinstance(e, Close) for e in decide(state, 1e9)))


@given(events())
def test_success_is_never_lost_before_the_close(found):
    state = running()
    for event in found:
        after = evolve(state, event)
        if after.is_closed:
            break
        if not isinstance(event, ResultArrived):
            assert after.tasks == state.tasks
        held = {r.seq: r for r in record_of(state, event)}
        kept = {r.seq: r for r in record_of(after, event)}
        lost = {r.number for seq, r in held.items() if seq not in kept}
        assert lost <= {r.number for seq, r in kept.items() if seq not in held}
        state = after


def record_of(state, event):
    if not isinstance(event, ResultArrived):
        return ()
    record = state.tasks.get(event.task)
    return () if record is None else record.reports


@given(arrivals(), st.sampled_from([None, 1, 3]), st.booleans(), TIMES)
def test_batch_is_complete_exactly_when_nothing_is_awaited(found, min_wait, partial, now):
    state = fold(running(min_wait_num=min_wait, return_partial=partial), found)
    if now > 1100.0:
        state = finish_all(state, 100)
    is_complete = close_reason(state, now) == "complete"
    assert is_complete == (not list(open_needs(state)))


@given(arrivals(), st.sampled_from(["train", "eval"]), st.sampled_from([None, 1, 2]), st.booleans())
def test_asked_for_batch_closes_or_is_expired_at_its_deadline(found, kind, min_wait, partial):
    state = fold(running(batch_type=kind, min_wait_num=min_wait, return_partial=partial), found)
    state = evolve(state, FinalizeRequested(1050.0))
    for now in (1050.0, 1051.0):
        closes = [effect for effect in decide(state, now) if isinstance(effect, Close)]
        assert len(closes) + expired(state, now) == 1
        assert not any(isinstance(effect, Abort) for effect in decide(state, now))
    assert kind == "train" or closes


@given(arrivals(), TIMES, TIMES, st.booleans())
def test_clock_that_jumps_back_undoes_nothing_and_forward_loses_nothing(found, now, later, asked):
    assume(now < later)
    state = fold(running(min_wait_num=1), found)
    if asked:
        state = evolve(state, FinalizeRequested())
    due, then = decide(state, now), decide(state, later)
    assert set(due) <= set(then) or any(isinstance(effect, Close) for effect in then)
    wake = next_wake(state, now)
    if then != due:
        assert wake is not None
        assert now < wake <= later
    assert decide(state, now) == due


@given(arrivals(), TIMES)
def test_each_retry_that_is_due_is_asked_for_once_until_it_is_queued(found, now):
    state = fold(running(), found)
    due = [effect for effect in decide(state, now) if isinstance(effect, PublishRetry)]
    keys = [(effect.task, effect.need.number) for effect in due]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {retry[:2] for retry in state.retries if retry.due_at <= now}
    assert all(effect.need in needs_of(state, effect.task) for effect in due)
    assert [e.task for e in due] == sorted(e.task for e in due)
    queued = evolve(state, RetryQueued(frozenset(keys)))
    assert not [effect for effect in decide(queued, now) if isinstance(effect, PublishRetry)]
    assert queued.retries == {retry for retry in state.retries if retry.due_at > now}


@given(arrivals(), st.integers(0, 25), st.integers(0, 3), st.sampled_from([None, 1, 2]))
def test_snapshot_and_tail_are_the_whole_replay(found, cut, entries, min_wait):
    found = list({(event.task, event.report.number): event for event in found}.values())
    journal = [opening(min_wait_num=min_wait), Running(batch=1), ENTRIES[Phase.FINALIZING], END]
    whole = replay(journal, [("1", event) for event in found])
    before = replay(journal[:entries], [("1", event) for event in found[:cut]])
    loaded = load(dump(RunSnapshot(before)), window=9).batches
    tail = replay(
        journal[entries:], [("1", event) for event in found[cut if entries else 0 :]], loaded
    )
    assert content(tail["1"]) == content(whole["1"])
    assert tail["1"].late == whole["1"].late


def test_replay_keeps_batches_apart_and_ignores_what_it_does_not_know():
    other = opening(batch="2/set", at=5.0)
    entries = [opening(), Running(batch="2/set"), other, Running(batch="2/set"), Running(batch=3)]
    event = ResultArrived(0, report(0, 4, [0]))
    given_before = {"0": running(batch=0)}
    states = replay(entries, [("2/set", event), ("3", event)], given_before)
    assert list(states) == ["0", "1", "2/set"]
    assert states["0"] is given_before["0"]
    assert states["1"] == open_batch(opening())
    assert states["2/set"] == evolve(evolve(open_batch(other), Running(batch="2/set")), event)
    assert list(given_before) == ["0"]


def test_result_of_an_unknown_task_is_late():
    for task in (-1, TASKS):
        state = arrive(running(), task, 0, 9, [0])
        assert (state.late, state.late_total) == ({9}, 1)
        assert (state.completed_runs, list(state.tasks.items())) == (0, [])
        assert decide(state, 1001.0) == (RemoveLate(frozenset({9})),)


def test_late_results_are_counted_once_and_forgotten_when_removed():
    state = at(Phase.FINALIZED)
    state = arrive(arrive(arrive(state, 0, 1, 8, [2]), 0, 1, 8, [2]), 1, 0, 9, [0])
    assert (state.late, state.late_total) == ({8, 9}, 2)
    state = evolve(state, LateRemoved(frozenset({8})))
    assert (state.late, state.late_total) == ({9}, 2)


def test_result_that_was_delivered_is_not_late_when_it_comes_again():
    state = at(Phase.FINALIZED)
    assert arrive(state, 0, 0, 2, [0, 1]) == state


def test_aborted_batch_that_was_not_closed_first_holds_only_late_results():
    state = at(Phase.ABORTED)
    assert (state.late, state.late_total) == ({2}, 1)
    assert (state.settled, state.completed_runs, state.experiences) == (1, 1, 1)
    assert arrive(state, 0, 0, 2, [0, 1]) == state


def test_aborted_batch_retries_nothing():
    state = arrive(running(), 0, 0, 2, [0])
    assert len(state.retries) == 1
    assert evolve(state, ABORTED).retries == frozenset()


def test_batch_aborted_while_it_is_delivered_keeps_what_it_was_closed_with():
    state = evolve(at(Phase.FINALIZING), ABORTED)
    assert (state.phase, state.late, state.outcome) == (Phase.ABORTED, frozenset(), ABORTED)


def test_close_parts_what_belongs_from_what_is_late():
    state = arrive(arrive(arrive(running(), 0, 0, 2, [0, 1]), 0, 1, 7, [2]), 1, 0, 5, [])
    assert len(state.retries) == 2
    closed = evolve(state, Finalizing(batch=1, results=((1, 3),), reason="deadline"))
    assert [(task, [r.seq for r in record.reports]) for task, record in closed.tasks.items()] == [
        (0, [2])
    ]
    assert (closed.late, closed.late_total, closed.retries) == ({5, 7}, 2, frozenset())
    assert (closed.completed_runs, closed.experiences) == (2, 2)


def test_closed_batch_takes_a_result_that_belongs_to_it_after_a_restart():
    close = Finalizing(batch=1, results=((1, 3),), reason="deadline")
    state = evolve(evolve(running(), close), ResultArrived(0, report(0, 2, [0, 1])))
    assert state.completed_runs == 2
    assert state == evolve(arrive(running(), 0, 0, 2, [0, 1]), close)


def test_partial_results_are_delivered_only_when_asked_for():
    for partial, ranges in ((True, ((1, 1), (3, 3))), (False, ())):
        state = arrive(running(return_partial=partial, batch_type="eval"), 0, 0, 1, [0])
        state = arrive(arrive(state, 1, 0, 2, []), 2, 1, 3, [2])
        state = evolve(state, FinalizeRequested(1050.0))
        (close,) = decide(state, 1050.0)
        assert close.entry == Finalizing(batch=1, results=ranges, reason="deadline")


@pytest.mark.parametrize(
    ("changes", "done", "reason"),
    [
        ({"return_partial": True}, (), None),
        ({"return_partial": True}, (0,), "deadline"),
        ({}, (0,), None),
        ({"batch_type": "eval"}, (), "deadline"),
    ],
)
def test_deadline_delivers_what_suffices(changes, done, reason):
    state = arrive(running(**changes), 0, 0, 1, done)
    assert close_reason(state, 1099.9) is None
    assert close_reason(state, 1100.0) == reason
    assert expired(state, 1100.0) == (reason is None)
    assert not expired(state, 1099.9)


def test_deadline_does_not_wait_for_the_end_of_the_grace_time():
    state = running(min_wait_num=1, grace_s=500.0)
    for need in needs_of(state, 0):
        assert close_reason(state, 1100.0) is None
        state = arrive(state, 0, need.number, need.number + 1, need.run_ids)
    assert [close_reason(state, now) for now in (1099.9, 1100.0)] == [None, "deadline"]


def test_given_up_batch_keeps_tasks_with_a_completed_run():
    state = arrive(arrive(running(), 0, 0, 4, []), 2, 0, 6, [1])
    assert abort_entry(state, "why") == Finalizing(
        batch=1, results=((6, 6),), reason="aborted", abort_reason="why"
    )
    assert collect_entry(state, [0]) == Finalizing(batch=1, results=((4, 4),), reason="collected")


def test_batch_nobody_asks_for_is_aborted_at_its_deadline_when_it_closes_itself():
    state = arrive(running(auto_finalize=True), 0, 0, 1, [0, 1])
    assert (decide(state, 1099.9), next_wake(state, 1001.0)) == ((), 1100.0)
    (abort,) = decide(state, 1100.0)
    assert abort.reason == "deadline of 100 s passed with 0 of 3 tasks settled"
    assert decide(arrive(running(), 0, 0, 1, [0, 1]), 1100.0) == ()
    (close,) = decide(finish_all(state, 2), 1001.0)
    assert close.entry.reason == "complete"


def test_deadline_counts_from_the_opening_unless_the_caller_gives_another():
    state = running()
    assert state.deadline_at == 1100.0
    assert evolve(state, FinalizeRequested(1234.0)).deadline_at == 1234.0
    asked = evolve(evolve(state, FinalizeRequested(1234.0)), FinalizeRequested())
    assert (asked.deadline_at, asked.requested) == (1100.0, True)
    left = evolve(evolve(state, FinalizeRequested(1234.0)), FinalizeWithdrawn())
    assert left == state


def test_grace_runs_from_the_result_that_made_it_enough():
    state = running(min_wait_num=1, grace_s=7.0)
    for need in needs_of(state, 0):
        state = arrive(
            state, 0, need.number, need.number + 1, need.run_ids, at=1002.0 + need.number
        )
    assert state.enough_at == 1004.0
    later = arrive(state, 1, 0, 9, [0, 1], at=1006.0)
    assert later.enough_at == 1004.0
    assert [close_reason(later, now) for now in (1010.9, 1011.0)] == [None, "enough"]


def test_counts_are_those_of_all_groups():
    groups = (*opening().groups, opening().groups[0].model_copy(update={"count": 2}))
    state = open_batch(opening(groups=groups))
    assert (state.task_count, state.total_runs, state.batch) == (5, 25, 1)
    assert [task for task, _ in open_needs(state)] == [t for t in range(5) for _ in range(3)]


def test_digest_counts_neither_waiters_nor_removed_results():
    state = at(Phase.FINALIZED)
    again = evolve(arrive(state, 0, 1, 8, [2]), LateRemoved(frozenset({8})))
    assert again.late_total == 1
    asked = evolve(again, FinalizeRequested(5.0))
    assert digest(RunSnapshot({"1": asked})) == digest(RunSnapshot({"1": state}))
