"""The base of class workflows, and how prompts are built from tasks.

A workflow is a class as below or a function ``f(task, model) -> Experience | list[Experience]``,
which may be a coroutine function. Plain functions and ``run`` are called in a thread.
"""

from __future__ import annotations

from typing import Any, ClassVar

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.model import Model


class Workflow:
    """One task's rollout.

    ``can_repeat``: one call yields all runs of the group; ``set_repeat_times`` is called before,
    and each experience carries its run in ``eid.run``. ``can_reset``: the instance may be used for
    the next task; it then gets another ``model`` before ``reset``. ``is_async``: ``run_async`` is
    used, else ``run`` in a thread.

    ``failures`` is for repeatable workflows: why runs failed while others succeeded, by
    ``eid.run``. Those alone are repeated.
    """

    can_reset: ClassVar[bool] = False
    can_repeat: ClassVar[bool] = False
    is_async: ClassVar[bool] = False

    def __init__(self, task: Task, model: Model) -> None:
        self.task = task
        self.model = model
        self.repeat_times = 1
        self.run_id_base = 0
        self.failures: dict[int, Exception] = {}

    def reset(self, task: Task) -> None:
        """Take up another task."""
        self.task = task
        self.failures = {}

    def set_repeat_times(self, repeat_times: int, run_id_base: int) -> None:
        """Yield the runs ``run_id_base`` to ``run_id_base + repeat_times - 1`` in one call.

        Where the runs asked for are not consecutive, the runner renumbers what is yielded.
        """
        self.repeat_times = repeat_times
        self.run_id_base = run_id_base

    def run(self) -> list[Experience]:
        """Roll out, blocking."""
        raise NotImplementedError(
            f"{type(self).__name__} defines no run(); a workflow with run_async() sets is_async"
        )

    async def run_async(self) -> list[Experience]:
        """Roll out."""
        raise NotImplementedError(f"{type(self).__name__} is async but defines no run_async()")


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
    if is_chat(task):
        return model.tokenizer.apply_chat_template(messages), messages
    return model.tokenizer.encode("".join(str(m["content"]) for m in messages)), messages


def is_chat(task: Task) -> bool:
    """Whether the task's prompt goes through the model's chat template."""
    return bool(task.format_args.get("chat", True))
