"""What a batch amounts to, in numbers a trainer and a user see."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from explorer_mq.core.batch import (
    abort_entry,
    close_reason,
    collect_entry,
    decide,
    evolve,
    open_batch,
)
from explorer_mq.core.outcome import (
    CompletedTaskResult,
    batch_metrics,
    batch_result,
    completed_tasks,
    end_entry,
    manifest,
    statuses,
    view,
)
from explorer_mq.core.records import Report
from explorer_mq.core.state import FinalizeRequested, ResultArrived
from explorer_mq_schemas.batches import BatchResult, BatchView, Parts, TrainBatchManifest
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.journal import (
    Aborted,
    Finalized,
    Finalizing,
    Running,
    Submitting,
    TaskGroup,
)
from explorer_mq_schemas.tasks import Status

WHO = {"batch": "7/math/hard", "batch_type": "train"}
CUT_OFF = "Remaining runs were cancelled during scheduler cleanup."


def opened(**changes):
    fields = {
        "batch": "7/math/hard",
        "batch_type": "train",
        "groups": (TaskGroup(count=4, repeat_times=3, runs_per_slice=2),),
        "at": 1000.0,
        "results_seq": 0,
        "deadline_s": 100.0,
        "timeout_s": 10.0,
        "max_attempts": 1,
        "inline": "{}\n{}",
        **changes,
    }
    opening = Submitting(**fields)
    return evolve(open_batch(opening), Running(batch=opening.batch))


def told(state, task, number, seq, *rewards, runs=2, failure="", versions=(None, None), **changes):
    """``state`` with a result whose first runs, one per reward, completed."""
    done = tuple(range(2 * number, 2 * number + len(rewards)))
    report = Report(
        number=number,
        seq=seq,
        at=1000.0 + seq,
        completed=done,
        runs=runs,
        attempt=1,
        seconds=float(seq),
        experiences=2 * len(done),
        payload_bytes=100 + seq,
        policy_version_min=versions[0],
        policy_version_max=versions[1],
        metrics_json=orjson.dumps([{"reward": reward} for reward in rewards]),
        failure=failure,
        worker="w",
    )
    return evolve(state, ResultArrived(task, report._replace(**changes)))


def some_results(**changes):
    """Task 0 done, 1 failed, 2 partly done and settled, 3 partly done and awaited."""
    state = told(opened(**changes), 2, 1, 1, runs=1, failure="late to tell")
    state = told(state, 2, 0, 2, 0.5, failure="first of two", versions=(3, 5))
    state = told(state, 0, 1, 3, 1.0, runs=1, versions=(4, 4))
    state = told(state, 1, 0, 4, failure="boom")
    state = told(state, 0, 0, 5, 0.0, 1.0)
    state = told(state, 1, 1, 6, runs=1, failure="bang")
    return told(state, 3, 0, 9, 0.25, 0.75, versions=(6, 7))


def status(task, done, reward, message):
    metrics = ({} if reward is None else {"reward": reward},)
    return Status(task_id=task, completed_runs=done, total_runs=3, metrics=metrics, message=message)


DONE = CompletedTaskResult(0, status(0, 3, 2 / 3, None), (3, 5), 5)
FAILED = CompletedTaskResult(1, status(1, 0, None, "boom"), (), 6)
PARTIAL = CompletedTaskResult(
    2,
    status(2, 1, 0.5, "1/3 runs completed successfully. First error: late to tell"),
    (2,),
    2,
)
AWAITED = CompletedTaskResult(
    3, status(3, 2, 0.5, f"2/3 runs completed successfully. {CUT_OFF}"), (9,), 9
)


def test_completed_tasks_come_in_order_of_their_last_results():
    state = some_results()
    assert completed_tasks(state) == [PARTIAL, DONE, FAILED]
    assert statuses(state) == [PARTIAL.status, DONE.status, FAILED.status]


def test_awaited_task_counts_when_partial_ones_do_and_has_a_run():
    assert completed_tasks(some_results(), partial=True) == [PARTIAL, DONE, FAILED, AWAITED]
    nothing = told(opened(), 3, 0, 1, failure="boom")
    assert completed_tasks(nothing, partial=True) == []
    (one,) = completed_tasks(told(opened(), 3, 0, 1, 1.0), partial=True)
    assert one.status.completed_runs == 1


def test_closed_batch_has_every_task_that_was_delivered():
    state = some_results()
    closed = evolve(state, Finalizing(batch=state.batch, results=((4, 9),), reason="collected"))
    assert [task.task_id for task in completed_tasks(closed)] == [0, 1, 3]
    assert closed.late == {1, 2, 3}


def test_task_without_any_word_of_error_was_cut_off():
    state = told(opened(max_attempts=2), 1, 0, 1)
    closed = evolve(state, Finalizing(batch=state.batch, results=((1, 1),), reason="deadline"))
    assert [one.message for one in statuses(closed)] == [CUT_OFF]


def test_train_metrics_are_over_tasks():
    found = [*statuses(some_results()), Status(completed_runs=0, total_runs=2)]
    assert batch_metrics(some_results(), found) == {
        "rollout/reward/mean": pytest.approx((2 / 3 + 0.5) / 2),
        "rollout/reward/max": pytest.approx(2 / 3),
        "rollout/reward/min": 0.5,
        "rollout/finished_task_count": 4.0,
        "rollout/failed_runs": 7.0,
    }


def test_only_the_metrics_of_the_task_itself_count():
    one = Status(completed_runs=1, total_runs=1, metrics=({"x": 1.0}, {"x": 9.0}))
    assert batch_metrics(opened(), [one])["rollout/x/mean"] == 1.0


@pytest.mark.parametrize(
    ("batch", "prefix"),
    [("7/math/hard", "eval/math/hard"), ("plain", "eval/plain"), (12, "eval/12")],
)
def test_eval_metrics_are_named_by_the_set(batch, prefix):
    state = opened(batch=batch, batch_type="eval")
    one = Status(completed_runs=2, total_runs=3, metrics=({"r/mean@3": 0.5},))
    assert batch_metrics(state, [one]) == {
        f"{prefix}/r/mean@3": 0.5,
        f"{prefix}/finished_task_count": 1.0,
        f"{prefix}/failed_runs": 1.0,
    }


def test_eval_statuses_name_their_metrics_by_repeat_times():
    (one,) = statuses(told(told(opened(batch_type="eval"), 0, 0, 1, 1.0, 0.0), 0, 1, 2, runs=1))
    assert one.metrics[0]["reward/mean@3"] == 0.5


def test_manifest_lists_results_with_experiences_by_task_and_slice():
    state = some_results()
    assert manifest(
        state, run="r", stream="S", finished=3, metrics={"a": 1.0}
    ) == TrainBatchManifest(
        run="r",
        batch="7/math/hard",
        tasks=4,
        finished_task_count=3,
        runs=12,
        completed_runs=6,
        experiences=12,
        policy_version_min=3,
        policy_version_max=7,
        metrics={"a": 1.0},
        parts=Parts(
            stream="S", seq=(5, 3, 2, 9), experiences=(4, 2, 2, 4), bytes=(105, 103, 102, 109)
        ),
    )


def test_manifest_of_nothing_has_no_versions():
    found = manifest(opened(), run="r", stream="S", finished=0, metrics={})
    assert (found.policy_version_min, found.policy_version_max) == (None, None)
    assert found.parts == Parts(stream="S")


def test_end_of_a_delivered_batch_tells_how_long_successes_took():
    state = some_results()
    closed = evolve(state, Finalizing(batch=state.batch, results=((1, 9),), reason="deadline"))
    entry = end_entry(closed, finished=4, metrics={"a": 1.0}, manifest_seq=8)
    assert entry == Finalized(
        batch="7/math/hard",
        batch_type="train",
        finished_task_count=4,
        completed_runs=6,
        experiences=12,
        metrics={"a": 1.0},
        manifest_seq=8,
        durations={1: (1, 3.0), 2: (2, 14.0)},
    )


def test_end_of_a_batch_given_up_says_why_and_what_was_kept():
    state = some_results()
    closed = evolve(state, abort_entry(state, "no time"))
    assert closed.closing == Finalizing(
        batch="7/math/hard",
        results=((1, 3), (5, 5), (9, 9)),
        reason="aborted",
        abort_reason="no time",
    )
    entry = end_entry(closed, finished=3, metrics={"a": 1.0}, manifest_seq=8)
    assert entry == Aborted(
        batch="7/math/hard",
        batch_type="train",
        reason="no time",
        finished_task_count=3,
        completed_runs=6,
        experiences=12,
        metrics={"a": 1.0},
        manifest_seq=8,
    )
    over = evolve(replace(closed, late_total=5), entry)
    assert batch_result(over) == BatchResult(
        batch_id="7/math/hard",
        batch_type="train",
        state="aborted",
        finished_task_count=3,
        tasks=4,
        runs=12,
        completed_runs=6,
        experiences=12,
        late_results=5,
        metrics={"a": 1.0},
        reason="no time",
    )


def test_collected_batch_is_closed_with_what_was_taken():
    state = some_results()
    assert collect_entry(state, {0, 2}) == Finalizing(
        batch="7/math/hard", results=((1, 3), (5, 5)), reason="collected"
    )


def test_result_of_a_finalized_batch_needs_no_reason():
    state = evolve(told(opened(max_attempts=3), 0, 0, 1, 1.0, 1.0), FinalizeRequested())
    closed = evolve(state, Finalizing(batch=state.batch, results=((1, 1),), reason="deadline"))
    over = evolve(closed, end_entry(closed, finished=1, metrics={}, manifest_seq=None))
    found = batch_result(over)
    assert (found.state, found.reason, found.completed_runs) == ("finalized", "", 2)
    assert (over.opening.inline, over.settled) == ("", 1)
    assert list(over.tasks.items()) == []


@pytest.mark.parametrize(("note", "rewards"), [({}, ()), ({"step": 7}, (2 / 3, None, 0.5, 0.5))])
def test_batch_with_a_note_ends_with_the_rewards_of_its_tasks(note, rewards):
    state = told(some_results(note=note), 3, 1, 10, 0.9, runs=1, metrics_json=b'[{"other":0.9}]')
    closed = evolve(state, Finalizing(batch=state.batch, results=((1, 10),), reason="complete"))
    entry = end_entry(closed, finished=4, metrics={}, manifest_seq=None)
    assert entry.rewards == rewards
    found = batch_result(evolve(closed, entry))
    assert (found.note, found.rewards) == (note, rewards)
    aborted = batch_result(evolve(closed, Aborted(**WHO, reason="why")))
    assert (aborted.note, aborted.rewards, aborted.reason) == (note, (), "why")


def test_open_batch_has_no_result():
    with pytest.raises(InvalidRequest, match="batch '7/math/hard' is still running"):
        batch_result(opened())


def test_view_shows_progress():
    state = replace(evolve(some_results(), FinalizeRequested(1050.0)), late_total=2)
    plain = BatchView(
        batch_id="7/math/hard",
        batch_type="train",
        state="running",
        tasks=4,
        settled_tasks=3,
        runs=12,
        completed_runs=6,
        failed_runs=0,
        experiences=12,
        late_results=2,
        submitted_at=1000.0,
        deadline_at=1050.0,
    )
    assert view(state) == plain
    found = (PARTIAL.status, DONE.status, FAILED.status)
    assert view(state, with_statuses=True) == plain.model_copy(
        update={"failed_runs": 5, "statuses": found}
    )


def test_view_of_a_batch_that_is_being_delivered_says_why_it_was_closed():
    state = evolve(some_results(min_wait_num=3, grace_s=5.0), FinalizeRequested())
    assert close_reason(state, 1010.9) is None
    (close,) = decide(state, 1011.0)
    closed = evolve(state, close.entry)
    assert (view(closed).state, view(closed).reason) == ("finalizing", "enough")
    over = evolve(closed, end_entry(closed, finished=3, metrics={}, manifest_seq=1))
    assert (view(over).state, view(over).reason) == ("finalized", "")
