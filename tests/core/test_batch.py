"""Laws of the fold: order and repeats cannot matter, nothing changes after the close."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer_mq.core.batch import (
    close_reason,
    decide,
    evolve,
    expired,
    needs_of,
    next_wake,
    open_batch,
    open_needs,
    replay,
)
from explorer_mq.core.grouping import first_runs, slices_per_task, task_groups
from explorer_mq.core.ranges import contains, to_ranges
from explorer_mq.core.records import Report
from explorer_mq.core.state import (
    LEGAL_MOVES,
    Close,
    Deliver,
    FinalizeRequested,
    PublishRetry,
    PublishTasks,
    RemoveLate,
    ResultArrived,
    RetryQueued,
)
from explorer_mq.core.table import Table
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.journal import Aborted, Finalized, Running, Submitting, TaskGroup
from explorer_mq_schemas.tasks import Task

TASKS, REPEAT, PER_SLICE, ATTEMPTS = 3, 5, 2, 3


def opening(**changes):
    fields = {
        "batch": 1,
        "batch_type": "train",
        "groups": (TaskGroup(count=TASKS, repeat_times=REPEAT, runs_per_slice=PER_SLICE),),
        "at": 1000.0,
        "results_seq": 0,
        "deadline_s": 100.0,
        "timeout_s": 10.0,
        "max_attempts": ATTEMPTS,
        **changes,
    }
    return Submitting(**fields)


def running(**changes):
    return evolve(open_batch(opening(**changes)), Running(batch=1))


def report(number, seq, completed, attempt=1, at=1001.0):
    return Report(
        number=number,
        seq=seq,
        at=at,
        completed=tuple(completed),
        runs=PER_SLICE,
        attempt=attempt,
        seconds=1.0,
        experiences=len(completed),
        payload_bytes=10,
        policy_version_min=1,
        policy_version_max=1,
        metrics_json=b"[]",
        failure="",
        worker="worker",
    )


def arrive(state, task, number, seq, completed, attempt=1, at=1001.0):
    return evolve(state, ResultArrived(task, report(number, seq, completed, attempt, at)))


def finish_all(state, start=1):
    seq = start
    for task, need in list(open_needs(state)):
        state = arrive(state, task, need.number, seq, need.run_ids)
        seq += 1
    return state


@st.composite
def arrivals(draw):
    """Any results a set of workers may send, also failed, partial and repeated ones."""
    events = []
    for seq in range(1, draw(st.integers(1, 25))):
        number = draw(st.integers(0, 8))
        runs = first_runs(REPEAT, PER_SLICE, number % 3)
        done = draw(st.lists(st.sampled_from(runs), unique=True)) if runs else []
        events.append(
            ResultArrived(
                draw(st.integers(0, TASKS - 1)),
                report(number, seq, done, draw(st.integers(1, ATTEMPTS)), 1000.0 + seq),
            )
        )
    return events


@given(arrivals(), st.randoms())
def test_fold_is_independent_of_order_and_repeats(events, random):
    straight = running()
    for event in events:
        straight = evolve(straight, event)
    mixed = running()
    again = [*events, *events]
    random.shuffle(again)
    for event in again:
        mixed = evolve(mixed, event)
    assert mixed == straight


@given(arrivals())
def test_counters_agree_with_the_table(events):
    state = running()
    for event in events:
        state = evolve(state, event)
    records = dict(state.tasks.items())
    assert state.completed_runs == sum(r.completed_runs for r in records.values())
    assert state.settled == sum(not needs_of(state, task) for task in range(TASKS))
    awaited = {(task, need.number) for task, need in open_needs(state)}
    asked = {retry[:2] for retry in state.retries}
    assert asked == {(task, number) for task, number in awaited if number >= 3}


@given(arrivals(), arrivals())
def test_closed_batch_never_changes_its_content(before, after):
    state = evolve(running(), FinalizeRequested())
    for event in before:
        state = evolve(state, event)
    state = finish_all(state, 100)
    while close_reason(state, 1001.0) is None:
        state = finish_all(state, 1000)
    (close,) = (effect for effect in decide(state, 1001.0) if isinstance(effect, Close))
    closed = evolve(state, close.entry)
    later = closed
    for event in after:
        moved = replace(event, report=event.report._replace(seq=event.report.seq + 10_000))
        later = evolve(later, moved)
    assert later.tasks == closed.tasks
    assert later.completed_runs == closed.completed_runs
    assert later.late >= closed.late


@given(arrivals())
def test_replay_from_streams_equals_the_live_state(events):
    live = evolve(running(), FinalizeRequested())
    for event in events:
        live = evolve(live, event)
    live = finish_all(live, 500)
    while close_reason(live, 1001.0) is None:
        live = finish_all(live, 2000)
    entry = decide(live, 1001.0)[-1].entry
    live = evolve(live, entry)
    stored = [
        ResultArrived(task, found)
        for task, record in live.tasks.items()
        for found in record.reports
    ]
    replayed = replay([opening(), Running(batch=1), entry], [("1", event) for event in stored])["1"]
    assert replayed.tasks == live.tasks
    assert (replayed.phase, replayed.completed_runs) == (live.phase, live.completed_runs)


def test_batch_runs_through_its_phases():
    state = open_batch(opening())
    assert decide(state, 0.0) == (PublishTasks(),)
    state = evolve(state, Running(batch=1))
    state = finish_all(evolve(state, FinalizeRequested()))
    (close,) = decide(state, 1001.0)
    assert close.entry.reason == "complete"
    assert close.entry.results == ((1, 9),)
    state = evolve(state, close.entry)
    assert decide(state, 1001.0) == (Deliver(),)
    done = Finalized(
        batch=1,
        batch_type="train",
        finished_task_count=3,
        completed_runs=15,
        experiences=15,
        metrics={},
    )
    state = evolve(state, done)
    assert (state.phase, decide(state, 1e9)) == (Phase.FINALIZED, ())
    assert evolve(state, Aborted(batch=1, batch_type="train", reason="no")) == state


def test_missing_runs_are_asked_for_in_a_new_slice():
    state = arrive(running(), 0, 0, 1, [1], attempt=1)
    due = next_wake(state, 1001.0)
    assert 1001.25 <= due <= 1001.5
    assert decide(state, due - 0.01) == ()
    effects = decide(state, due)
    assert [(e.task, e.need.number, e.need.run_ids) for e in effects] == [(0, 3, (0,))]
    assert isinstance(effects[0], PublishRetry)
    assert effects[0].need.attempts_used == 1
    queued = evolve(state, RetryQueued(frozenset({(0, 3)})))
    assert (decide(queued, 2000.0), next_wake(queued, 2000.0)) == ((), None)
    state = arrive(state, 0, 3, 2, [], attempt=ATTEMPTS)
    assert decide(state, 2000.0) == ()
    assert [need.number for need in needs_of(state, 0)] == [1, 2]


def test_first_result_of_a_slice_wins():
    state = arrive(running(), 0, 0, 5, [0, 1])
    assert arrive(state, 0, 0, 6, [0]) == state


@pytest.mark.parametrize(
    ("changes", "settled", "now", "reason"),
    [
        ({}, 3, 1001.0, "complete"),
        ({}, 2, 1099.0, None),
        ({}, 2, 1101.0, None),
        ({"return_partial": True}, 2, 1101.0, "deadline"),
        ({"batch_type": "eval"}, 0, 1101.0, "deadline"),
        ({"min_wait_num": 2}, 2, 1002.0, None),
        ({"min_wait_num": 2}, 2, 1031.0, "enough"),
        ({"min_wait_num": 3}, 2, 1101.0, None),
    ],
)
def test_batch_closes_for_the_right_reason(changes, settled, now, reason):
    state = evolve(running(**changes), FinalizeRequested())
    for task in range(settled):
        for need in needs_of(state, task):
            state = arrive(state, task, need.number, task * 10 + need.number + 1, need.run_ids)
    assert close_reason(state, now) == reason
    assert expired(state, now) == (now > 1100.0 and reason is None)


def test_unsettled_tasks_stay_out_of_an_incomplete_batch():
    state = evolve(running(min_wait_num=1), FinalizeRequested())
    state = arrive(state, 2, 0, 1, [0, 1])
    for need in needs_of(state, 0):
        state = arrive(state, 0, need.number, need.number + 2, need.run_ids)
    (close,) = decide(state, 1032.0)
    state = evolve(state, close.entry)
    assert (close.entry.reason, state.completed_runs) == ("enough", REPEAT)
    assert decide(state, 1032.0)[0] == RemoveLate(frozenset({1}))


def test_wake_is_the_deadline_or_the_end_of_the_grace_time():
    state = running(min_wait_num=1)
    assert next_wake(state, 1001.0) is None
    state = evolve(state, FinalizeRequested())
    assert next_wake(state, 1001.0) == 1100.0
    assert next_wake(state, 1100.0) is None
    for need in needs_of(state, 0):
        state = arrive(state, 0, need.number, need.number + 1, need.run_ids, at=1005.0)
    assert next_wake(state, 1005.0) == 1035.0
    assert next_wake(evolve(state, FinalizeRequested(1010.0)), 1005.0) == 1010.0


def test_aborted_batch_gives_up_its_results():
    state = arrive(running(), 0, 0, 7, [0, 1])
    state = evolve(state, Aborted(batch=1, batch_type="train", reason="why"))
    assert (state.phase, state.completed_runs, state.late) == (Phase.ABORTED, 0, frozenset({7}))


def test_final_phases_lead_nowhere():
    assert [phase for phase, moves in LEGAL_MOVES.items() if not moves] == [
        Phase.FINALIZED,
        Phase.ABORTED,
    ]


@given(st.integers(1, 200), st.integers(1, 200))
def test_slices_cover_each_run_once(repeat, per_slice):
    count = slices_per_task(repeat, per_slice)
    runs = [run for number in range(count) for run in first_runs(repeat, per_slice, number)]
    assert runs == list(range(repeat))


@pytest.mark.parametrize("repeat", [None, 0, -1])
def test_task_without_runs_is_refused(repeat):
    with pytest.raises(InvalidRequest, match="task 1: repeat_times"):
        task_groups([Task(repeat_times=2), Task(repeat_times=repeat)], None)


@given(st.sets(st.integers(0, 300)), st.integers(-5, 305))
def test_ranges_hold_exactly_their_numbers(numbers, probe):
    assert contains(to_ranges(numbers), probe) == (probe in numbers)


@settings(max_examples=30)
@given(st.integers(1, 300), st.dictionaries(st.integers(0, 299), st.integers()))
def test_table_behaves_like_a_list(size, changes):
    table, plain = Table.empty(size), [None] * size
    for index, value in changes.items():
        if index < size:
            before = table
            table = table.set(index, value)
            assert before.get(index) is None
            plain[index] = value
    assert [table.get(index) for index in range(size)] == plain
    assert dict(table.items()) == {i: v for i, v in enumerate(plain) if v is not None}
