"""What is kept of a result, what it leaves to be done, and when that is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.core.records import Report, SliceNeed, TaskWrapper, awaited, due_at
from explorer_mq_schemas.results import Failure, Result
from tests.core.test_batch import opening, report


def test_report_keeps_what_the_header_says():
    result = Result(
        worker="w-1",
        attempt=2,
        seconds=1.5,
        failure=Failure(code="task", kind="ValueError", message="boom", traceback="long"),
        run_ids=(4, 5, 6),
        completed=(4, 6),
        metrics=({"r": 1.0}, {"r": 2.0}),
        experiences=7,
        bytes=99,
        policy_version_min=3,
        policy_version_max=4,
    )
    found = Report.of(8, 21, 1234.5, result)
    assert found == Report(
        number=8,
        seq=21,
        at=1234.5,
        completed=(4, 6),
        runs=3,
        attempt=2,
        seconds=1.5,
        experiences=7,
        payload_bytes=99,
        policy_version_min=3,
        policy_version_max=4,
        metrics_json=b'[{"r":1.0},{"r":2.0}]',
        failure="boom",
        worker="w-1",
    )
    assert found.run_metrics() == [{"r": 1.0}, {"r": 2.0}]
    assert not found.is_success
    whole = result.model_copy(update={"completed": (4, 5, 6), "failure": None})
    assert Report.of(8, 21, 1234.5, whole).failure == ""
    assert Report.of(8, 21, 1234.5, whole).is_success


def test_task_keeps_the_first_report_of_each_slice_in_order_of_arrival():
    one, two, other = report(0, 5, [0]), report(0, 3, [1]), report(1, 4, [2, 3])
    task = TaskWrapper().merge(one)
    assert task.merge(one) is task
    assert task.merge(report(0, 6, [])) is task
    merged = task.merge(other).merge(two)
    assert merged.reports == (two, other)
    assert (merged.finished_sub_task_num, merged.completed_runs, merged.experiences) == (2, 3, 3)
    assert merged.keep({4, 9}).reports == (other,)


def test_first_error_is_that_of_the_first_report_with_one():
    silent = report(0, 1, [])
    first, second = (report(n, 9 - n, [])._replace(failure=f"error {n}") for n in (1, 2))
    task = TaskWrapper()
    assert task.first_error == ""
    for one in (silent, first, second):
        task = task.merge(one)
    assert task.first_error == "error 2"


def test_chain_of_a_slice_goes_on_while_runs_are_missing_and_attempts_are_left():
    first = report(0, 1, [1], attempt=1, at=10.0)
    second = report(2, 2, [], attempt=2, at=20.0)
    other = SliceNeed(1, (3, 4), 0)
    needs = [awaited(reports, 5, 3, 3) for reports in ([], [first], [first, second])]
    assert needs == [
        (SliceNeed(0, (0, 1, 2), 0), other),
        (SliceNeed(2, (0, 2), 1, 10.0), other),
        (SliceNeed(4, (0, 2), 2, 20.0), other),
    ]
    for last in (report(4, 3, [0, 2], attempt=3), report(4, 3, [0], attempt=3)):
        assert awaited([first, second, last], 5, 3, 3) == (other,)
    assert awaited([first], 5, 3, 1) == (other,)


def test_report_of_a_retry_waits_for_the_one_before_it():
    early = report(2, 2, [0, 2], attempt=2)
    assert awaited([early], 3, 2, 3) == (SliceNeed(0, (0, 1), 0), SliceNeed(1, (2,), 0))


def needed(attempts, number=9, failed_at=100.0):
    return SliceNeed(number, (0,), attempts, failed_at)


@pytest.mark.parametrize(
    ("attempts", "longest"), [(0, 0.5), (1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 6.0), (50, 6.0)]
)
def test_pause_doubles_up_to_its_limit_and_is_shortened_by_up_to_half(attempts, longest):
    start = opening(retry_first_s=0.5, retry_longest_s=6.0)
    pauses = [
        due_at(start, task, needed(attempts, number)) - 100.0
        for task in range(40)
        for number in range(3, 13)
    ]
    assert longest / 2 <= min(pauses) < longest * 0.55
    assert longest * 0.95 < max(pauses) < longest
    assert len(set(pauses)) > 390


def test_pause_is_the_same_in_every_replay():
    assert due_at(opening(), 2, needed(1)) == 100.4460615045391
    assert due_at(opening(batch="b"), 2, needed(1)) == 100.4291684294003
    assert due_at(opening(retry_first_s=0.0), 2, needed(1)) == 100.0


def test_first_slice_is_due_at_once():
    assert due_at(opening(at=77.0), 0, needed(0, failed_at=None)) == 77.0


@given(st.integers(1, 1000), st.floats(0, 1e9))
def test_retry_is_never_due_before_the_failure(attempts, failed_at):
    found = due_at(opening(), 0, needed(attempts, failed_at=failed_at))
    assert failed_at <= found <= failed_at + 30.0
