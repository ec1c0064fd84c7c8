"""What the tasks of a chaos run do, one verb each; named ``explorer_mq.chaos.workflows:<name>``.

Which runs can succeed is decided by the task, never by luck: the audit knows it in advance. Each
experience says in ``info["origin"]`` which task made it, so that a mix-up is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.tasks import Task


async def steady(task: Task, model: Any) -> Experience:
    """One answer."""
    return await _answer(task, model)


async def chatty(task: Task, model: Any) -> Experience:
    """As many model calls as the task says, so that a fault finds it at work; the last one counts."""
    for _ in range(task.raw_task["calls"] - 1):
        await _answer(task, model)
    return await _answer(task, model)


async def moody(task: Task, model: Any) -> Experience:
    """The first ``failures`` calls for this task, wherever they run, fail; later ones do not.

    Marks in a directory count them across workers. Slices whose runs failed in part yield partial
    results, those whose runs all failed are handed back.
    """
    marks = Path(task.raw_task["marks"])
    for number in range(task.raw_task["failures"]):
        mark = marks / f"{task.raw_task['origin'].replace('/', '-')}-{number}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            continue
        raise RuntimeError(f"failure {number} of {task.raw_task['origin']}")
    return await _answer(task, model)


async def broken(task: Task, model: Any) -> Experience:
    """Fails always: its runs end as a dead letter."""
    del model
    raise RuntimeError(f"{task.raw_task['origin']} cannot succeed")


async def _answer(task: Task, model: Any) -> Experience:
    origin = task.raw_task["origin"]
    experience: Experience
    (experience,) = await model.chat_async([{"role": "user", "content": origin}])
    experience.reward = 1.0
    experience.info = {"origin": origin}
    return experience
