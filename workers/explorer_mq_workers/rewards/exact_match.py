"""All or nothing."""

from __future__ import annotations

from explorer_mq_schemas.tasks import Task


def exact_match(task: Task, answer: str) -> float:
    """1 if the answer is the reference answer, white space around it aside; else 0."""
    return float(answer.strip() == str(task.truth).strip())
