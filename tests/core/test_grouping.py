"""How tasks are cut into slices, and how many of them suffice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.core.closing import min_wait_num
from explorer_mq.core.grouping import each_task, shape_of, task_groups
from explorer_mq.core.ranges import contains, to_ranges, union
from explorer_mq.core.table import Table
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.journal import TaskGroup
from explorer_mq_schemas.tasks import Task


def group(count, repeat, per_slice):
    return TaskGroup(count=count, repeat_times=repeat, runs_per_slice=per_slice)


def tasks(*repeats):
    return [Task(repeat_times=repeat) for repeat in repeats]


@pytest.mark.parametrize(
    ("repeats", "longest", "groups"),
    [
        ((), 2, ()),
        ((1,), None, (group(1, 1, 1),)),
        ((4, 4, 4), None, (group(3, 4, 4),)),
        ((4, 4, 8), 3, (group(2, 4, 3), group(1, 8, 3))),
        ((8, 4, 4, 8), 8, (group(1, 8, 8), group(2, 4, 4), group(1, 8, 8))),
        ((1, 2, 1), 5, (group(1, 1, 1), group(1, 2, 2), group(1, 1, 1))),
    ],
)
def test_consecutive_tasks_of_one_shape_are_one_group(repeats, longest, groups):
    assert task_groups(tasks(*repeats), longest) == groups


def test_refusal_says_what_repeat_times_is():
    with pytest.raises(InvalidRequest) as caught:
        task_groups(tasks(1, 0), None)
    assert str(caught.value) == (
        "task 1: repeat_times is 0; it must be at least 1 (the number of runs of the task's group)"
    )


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), max_size=4))
def test_shape_of_a_task_is_that_of_its_group(shapes):
    groups = [group(*shape) for shape in shapes]
    expected = [(repeat, per_slice) for count, repeat, per_slice in shapes for _ in range(count)]
    assert list(each_task(groups)) == [(task, *shape) for task, shape in enumerate(expected)]
    assert [shape_of(groups, task) for task in range(len(expected))] == expected
    with pytest.raises(IndexError, match=f"^{len(expected)}$"):
        shape_of(groups, len(expected))


@pytest.mark.parametrize(
    ("size", "ratio", "wanted"),
    [
        (10, 0.0, None),
        (10, -0.5, None),
        (10, 0.7, 3),
        (10, 0.25, 8),
        (3, 0.5, 2),
        (10, 0.95, 1),
        (10, 1.0, 1),
        (10, 2.0, 1),
        (1, 0.01, 1),
        (40, 0.025, 39),
    ],
)
def test_share_that_may_be_left_out_is_exact(size, ratio, wanted):
    assert min_wait_num(size, ratio) == wanted


PAIRS = st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(st.lists(PAIRS, max_size=5), max_size=3))
def test_union_of_ranges_is_the_union_of_their_numbers(parts):
    numbers = {n for part in parts for low, high in part for n in range(low, high + 1)}
    assert union(*parts) == to_ranges(numbers)


def test_range_ends_belong_to_it_and_gaps_do_not():
    ranges = to_ranges([4, 1, 2, 8, 2])
    assert ranges == ((1, 2), (4, 4), (8, 8))
    assert [number for number in range(10) if contains(ranges, number)] == [1, 2, 4, 8]
    assert not contains((), 1)


@pytest.mark.parametrize("index", [-1, 65, 64 * 3])
def test_table_has_no_place_beyond_its_size(index):
    table = Table.empty(65)
    with pytest.raises(IndexError, match=f"^{index}$"):
        table.get(index)
    with pytest.raises(IndexError, match=f"^{index}$"):
        table.set(index, 1)


@given(st.integers(1, 200), st.dictionaries(st.integers(0, 199), st.integers()))
def test_table_made_at_once_is_the_table_made_step_by_step(size, entries):
    entries = {index: value for index, value in entries.items() if index < size}
    stepwise = Table.empty(size)
    for index, value in entries.items():
        stepwise = stepwise.set(index, value)
    assert Table.of(size, entries) == stepwise
    assert list(stepwise.items()) == sorted(entries.items())
    assert stepwise.size == size


def test_table_shares_the_blocks_that_did_not_change():
    before = Table.of(200, {0: "a", 70: "b", 199: "c"})
    after = before.set(70, None)
    assert [after.get(index) for index in (0, 70, 199)] == ["a", None, "c"]
    assert before.get(70) == "b"
    kept = [old is new for old, new in zip(before._blocks, after._blocks, strict=True)]
    assert kept == [True, False, True, True]
