"""Things worth telling people as they happen; volatile, and never what a decision rests on."""

from __future__ import annotations

from typing import Literal

from explorer_mq_schemas.messages import Message

EventKind = Literal[
    "batch", "leader", "recovered", "stalled", "worker_fenced", "worker_lost", "worker_joined"
]


class Event(Message):
    """Something happened: in words, with what it concerns and the command that helps.

    ``at`` is Unix time in seconds on the server's clock.
    """

    kind: EventKind
    at: float
    text: str
    batch: str = ""
    task: int | None = None
    worker: str = ""
    cause: str = ""
    remedy: str = ""
