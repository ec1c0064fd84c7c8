"""Rewards: ``fn(task, answer, **reward_fn_args) -> float or dict of parts``, sync or async."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

from explorer_mq.plugins import load
from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.boundary import boundary

_load = functools.cache(load)
"""Reading the installed distributions takes milliseconds; a name never changes its meaning."""


async def score(task: Task, answer: str, name: str | None = None) -> tuple[float, dict[str, float]]:
    """The reward of ``answer`` and its parts; the sum of the parts is the reward.

    Raises:
        TaskError: the reward cannot be loaded, raises, or is not a finite number.
    """
    name = name or task.reward_fn
    if name is None:
        raise TaskError(f"workflow {task.workflow!r} needs a reward: set the task's reward_fn")
    with boundary(f"reward {name!r}"):
        found = _load(name, "explorer_mq.rewards")(task, answer, **task.reward_fn_args)
        if inspect.isawaitable(found):
            found = await found
    parts = found if isinstance(found, Mapping) else {"reward": found}
    return check_reward(name, parts), {key: float(value) for key, value in parts.items()}


def check_reward(name: str, parts: Mapping[str, Any]) -> float:
    """The sum of ``parts``.

    Raises:
        TaskError: it is not a finite number.
    """
    try:
        total = float(sum(parts.values()))
    except (TypeError, ValueError) as error:
        raise TaskError(f"reward {name!r} returned {parts!r}; expected numbers") from error
    if not math.isfinite(total):
        raise TaskError(f"reward {name!r} returned {total}; a reward must be finite")
    return total
