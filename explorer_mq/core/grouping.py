"""How a task's group of runs is cut into slices, and which slice comes after which.

A task with ``repeat_times`` runs starts as ``k`` slices ``0 .. k - 1`` of consecutive runs. The
missing runs of slice ``s`` go out again as slice ``s + k``, theirs as ``s + 2k``: numbers are
unique within the task and follow from the state alone, so publishing a retry twice is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.journal import TaskGroup
from explorer_mq_schemas.tasks import Task


def slices_per_task(repeat_times: int, runs_per_slice: int) -> int:
    """``k``: how many slices the group is cut into at first."""
    return -(-repeat_times // runs_per_slice)


def first_runs(repeat_times: int, runs_per_slice: int, number: int) -> tuple[int, ...]:
    """Run indices of initial slice ``number``; the last slice may be shorter."""
    start = number * runs_per_slice
    return tuple(range(start, min(start + runs_per_slice, repeat_times)))


def task_groups(
    tasks: Sequence[Task], max_repeat_times_per_runner: int | None
) -> tuple[TaskGroup, ...]:
    """Run-length description of the batch: consecutive tasks of one shape become one entry.

    Raises:
        InvalidRequest: a task without a positive ``repeat_times``; the message names it.
    """
    groups: list[tuple[int, int, int]] = []
    for number, task in enumerate(tasks):
        repeat = task.repeat_times
        if repeat is None or repeat < 1:
            raise InvalidRequest(
                f"task {number}: repeat_times is {repeat!r}; it must be at least 1 "
                "(the number of runs of the task's group)"
            )
        per_slice = min(repeat, max_repeat_times_per_runner or repeat)
        if groups and groups[-1][1:] == (repeat, per_slice):
            groups[-1] = (groups[-1][0] + 1, repeat, per_slice)
        else:
            groups.append((1, repeat, per_slice))
    return tuple(
        TaskGroup(count=count, repeat_times=repeat, runs_per_slice=per_slice)
        for count, repeat, per_slice in groups
    )


def each_task(groups: Sequence[TaskGroup]) -> Iterator[tuple[int, int, int]]:
    """Task number, ``repeat_times`` and ``runs_per_slice`` of every task of a batch."""
    number = 0
    for group in groups:
        for _ in range(group.count):
            yield number, group.repeat_times, group.runs_per_slice
            number += 1


def shape_of(groups: Sequence[TaskGroup], number: int) -> tuple[int, int]:
    """``repeat_times`` and ``runs_per_slice`` of one task.

    Raises:
        IndexError: the batch has no such task.
    """
    rest = number
    for group in groups:
        if rest < group.count:
            return group.repeat_times, group.runs_per_slice
        rest -= group.count
    raise IndexError(number)
