"""Rewards: ``fn(task, answer, **reward_fn_args) -> float or dict of parts``, sync or async.

Plain functions run in a thread: a verifier that computes for seconds must not hold up the worker.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.boundary import boundary
from explorer_mq_workers.calling import call, load_code

GROUP = "explorer_mq.rewards"


async def score(task: Task, answer: str, name: str | None = None) -> tuple[float, dict[str, float]]:
    """The reward of ``answer`` and its parts; the sum of the parts is the reward.

    Args:
        task: names the reward (``reward_fn``) and its arguments (``reward_fn_args``).
        answer: the text to judge.
        name: another reward than the task's.

    Raises:
        TaskError: the reward cannot be loaded, raises, or is not a finite number.
    """
    name = name or task.reward_fn
    if name is None:
        raise TaskError(f"workflow {task.workflow!r} needs a reward: set the task's reward_fn")
    async with boundary(f"workflow {task.workflow!r}, reward {name!r}"):
        code = await load_code(name, GROUP)
        judge = functools.partial(code, task, answer, **task.reward_fn_args)
        found = await call(judge, name=f"reward {name}")
    parts = found if isinstance(found, Mapping) else {"reward": found}
    return check_reward(task, name, parts), {key: float(part) for key, part in parts.items()}


def check_reward(task: Task, name: str, parts: Mapping[str, Any]) -> float:
    """The sum of ``parts``.

    Raises:
        TaskError: it is not a finite number; names workflow, reward and value.
    """
    where = f"workflow {task.workflow!r}: reward {name!r}"
    try:
        total = sum(float(_number(part)) for part in parts.values())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"{where} is {dict(parts)!r}; expected numbers") from error
    if not math.isfinite(total):
        raise TaskError(f"{where} is {total}; a reward must be finite")
    return total


def _number(value: Any) -> Any:
    """``value``, unless it is text: ``float`` would parse it."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{value!r} is text")
    return value
