"""Instances of class workflows: made when needed, used again when their class allows it."""

from __future__ import annotations

from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.model import Model
from explorer_mq_workers.workflows.protocol import Workflow


class Instances:
    """Idle instances of classes with ``can_reset``; an instance never serves two runs at once."""

    def __init__(self) -> None:
        self._idle: dict[type, list[Workflow]] = {}

    def take(self, code: type[Workflow], task: Task, model: Model) -> Workflow:
        """An idle instance, reset to ``task``, or a new one."""
        try:
            workflow = self._idle[code].pop()
        except (KeyError, IndexError):
            return code(task, model)
        workflow.model = model
        workflow.reset(task)
        return workflow

    def give_back(self, workflow: Workflow) -> None:
        """Keep an instance whose run succeeded, if it can be reset."""
        if getattr(workflow, "can_reset", False):
            self._idle.setdefault(type(workflow), []).append(workflow)
