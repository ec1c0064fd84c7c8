"""The batches of a chaos run, each drawn from the seed and its number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from explorer_mq_schemas.tasks import BatchType, Task

_TASKS = (26, 38)
_LARGEST_GROUP = 8
_EVAL_SHARE = 0.08

_WORKFLOWS = "explorer_mq.chaos.workflows"
_VERBS = {"steady": 78, "chatty": 12, "moody": 9, "broken": 1}
_MOST_FAILURES = 2
_MOST_CALLS = 6


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch to submit; ``expected`` has the (task, run) pairs that can succeed."""

    batch_id: int | str
    batch_type: BatchType
    tasks: tuple[Task, ...]
    expected: frozenset[tuple[int, int]]

    @property
    def name(self) -> str:
        """The id as text."""
        return str(self.batch_id)

    @property
    def runs(self) -> int:
        """Runs asked for, also of tasks that cannot succeed."""
        return sum(task.repeat_times or 0 for task in self.tasks)


def planned_batch(seed: int, number: int, marks: Path) -> PlannedBatch:
    """Batch ``number`` of the run; ``marks`` is where failures are counted across workers."""
    rng = random.Random(f"batch/{seed}/{number}")  # noqa: S311 - reproducible, not secret
    is_eval = rng.random() < _EVAL_SHARE
    batch_id: int | str = f"{number}/check" if is_eval else number
    tasks: list[Task] = []
    expected: set[tuple[int, int]] = set()
    for at in range(rng.randint(*_TASKS)):
        verb = rng.choices(list(_VERBS), list(_VERBS.values()))[0]
        repeat = 1 if verb == "broken" else rng.randint(1, _LARGEST_GROUP)
        row = {
            "origin": f"{batch_id}/{at}",
            "marks": str(marks),
            "calls": rng.randint(2, _MOST_CALLS),
            "failures": rng.randint(1, _MOST_FAILURES),
        }
        tasks.append(
            Task(
                workflow=f"{_WORKFLOWS}:{verb}",
                raw_task=row,
                repeat_times=repeat,
                is_eval=is_eval,
            )
        )
        if verb != "broken":
            expected.update((at, run) for run in range(repeat))
    return PlannedBatch(batch_id, "eval" if is_eval else "train", tuple(tasks), frozenset(expected))
