"""How long attempts take, as the coordinator measured it and workers apply it."""

from __future__ import annotations

from pydantic import Field

from explorer_mq_schemas.messages import Message


class AttemptTimeouts(Message):
    """Mean seconds of successful attempts, by the number of runs in their slice.

    Kept in the state bucket under ``timeouts``. A worker ends an attempt after ``ratio`` times the
    mean of its kind (train or eval); while ``train`` (or ``eval``) is empty only the slice's own
    ``timeout_s`` limits it.
    """

    ratio: float = Field(gt=0)
    train: dict[int, float] = Field(default_factory=dict)
    eval: dict[int, float] = Field(default_factory=dict)
