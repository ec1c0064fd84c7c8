"""What runs where: from a worker's beat to the rows of the table that shows it."""

from __future__ import annotations

from explorer_mq.core.runners import RunningTaskState, runner_states, state_table
from explorer_mq_schemas.beats import RunningSlice, WorkerBeat


def busy(**changes):
    return RunningSlice(
        **{
            "batch": "7/math",
            "task": 3,
            "slice": 4,
            "attempt": 2,
            "started_at": 100.0,
            "slot": 1,
            "calls": 5,
            "tokens": 60,
            "progress_at": 150.0,
            "state": {"step": "think"},
            **changes,
        }
    )


def beat(*running):
    return WorkerBeat(
        worker="w",
        pools=("default",),
        state="ready",
        slots=2,
        running=running,
        policy_version=9,
    )


def test_each_busy_slot_is_a_runner():
    one, other = runner_states(beat(busy(), busy(slot=0, state={"model_version": 8})))
    assert one == RunningTaskState(
        batch_id="7/math",
        task_id=3,
        slice_number=4,
        runner_id="w/1",
        attempt=2,
        started_at=100.0,
        progress_at=150.0,
        calls=5,
        tokens=60,
        state={"model_version": 9, "step": "think"},
    )
    assert (other.runner_id, other.state) == ("w/0", {"model_version": 8})
    assert runner_states(beat()) == []


def test_slice_without_progress_counts_from_its_start():
    (one,) = runner_states(beat(busy(progress_at=0.0)))
    assert one.progress_at == 100.0


def test_row_holds_what_the_workflow_noted_over_what_the_worker_knows():
    (one,) = runner_states(beat(busy(state={"step": "think", "begin_time": 120.0})))
    assert one.fields() == {
        "workflow_id": "7/math/3/4",
        "begin_time": 120.0,
        "attempt": 2,
        "calls": 5,
        "tokens": 60,
        "model_version": 9,
        "step": "think",
    }


def test_state_table_is_aligned_and_sorted_by_runner():
    table = state_table({"w/1": {"begin_time": 10.0, "a": 1}, "w/0": {"b": "xyz"}}, now=12.54)
    assert table.splitlines() == [
        "runner_id | a | b   | begin_time | running_time",
        "w/0       | - | xyz | -          | -",
        "w/1       | 1 | -   | 10.0       | 2.5",
    ]


def test_table_of_nobody_is_its_heading():
    assert state_table({}, now=1.0) == "runner_id"
