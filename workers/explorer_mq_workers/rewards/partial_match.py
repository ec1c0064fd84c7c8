"""Partial credit for characters in the right place."""

from __future__ import annotations

from explorer_mq_schemas.tasks import Task


def partial_match(task: Task, answer: str) -> dict[str, float]:
    """1 for the exact answer; else half the share of right characters; 0 for another length.

    Its two parts, of which one is 0, are metrics too: ``exact`` and ``partial``.
    """
    truth = str(task.truth)
    if answer == truth:
        return {"exact": 1.0, "partial": 0.0}
    if len(answer) != len(truth):
        return {"exact": 0.0, "partial": 0.0}
    right = sum(a == b for a, b in zip(truth, answer, strict=True))
    return {"exact": 0.0, "partial": 0.5 * right / len(truth)}
