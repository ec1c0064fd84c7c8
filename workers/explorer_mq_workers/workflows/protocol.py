"""The base of class workflows, and how prompts are built from tasks."""

from __future__ import annotations

from typing import Any, ClassVar

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.model import Model


class Workflow:
    """One task's rollout.

    ``can_repeat``: one call yields all runs (``set_repeat_times`` is called first). ``can_reset``:
    the instance may be used for the next task. ``is_async``: ``run_async`` is used, else ``run``
    in a thread.
    """

    can_reset: ClassVar[bool] = False
    can_repeat: ClassVar[bool] = False
    is_async: ClassVar[bool] = False

    def __init__(self, task: Task, model: Model) -> None:
        self.task = task
        self.model = model
        self.run_ids: tuple[int, ...] = (0,)

    def reset(self, task: Task) -> None:
        """Take up another task."""
        self.task = task

    def set_repeat_times(self, run_ids: tuple[int, ...]) -> None:
        """Which runs of the group one call yields."""
        self.run_ids = run_ids

    def run(self) -> list[Experience]:
        """Roll out, blocking."""
        raise NotImplementedError

    async def run_async(self) -> list[Experience]:
        """Roll out."""
        raise NotImplementedError


def prompt_tokens(task: Task, model: Model) -> tuple[list[int], list[dict[str, Any]]]:
    """The task's prompt as token ids, and as messages for people.

    ``format_args``: ``prompt_key``, ``system_prompt``, ``chat`` (True: chat template; False: the
    prompt text as it is). The row may hold ``messages`` instead of a prompt.

    Raises:
        TaskError: the row has no prompt.
    """
    given = task.raw_task.get("messages")
    if given is None:
        if task.task_desc is None:
            key = task.format_args.get("prompt_key", "prompt")
            raise TaskError(f"the task's row has no {key!r}; it has {sorted(task.raw_task)}")
        given = [{"role": "user", "content": str(task.task_desc)}]
    messages = list(given)
    system = task.format_args.get("system_prompt")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    if task.format_args.get("chat", True):
        return model.tokenizer.apply_chat_template(messages), messages
    return model.tokenizer.encode("".join(str(m["content"]) for m in messages)), messages
