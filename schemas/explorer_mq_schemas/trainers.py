"""What a trainer says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from explorer_mq_schemas.messages import Message

TrainerPhase = Literal["running", "requires_sync", "stopped"]


def trainer_key(trainer: str) -> str:
    """Key of a trainer's state in the state bucket."""
    return f"trainer_state {trainer}"


class TrainerState(Message):
    """State of one trainer, kept in the state bucket under ``trainer_state <name>``.

    No such key: it has not started. ``requires_sync``: it waits for the explorer to take over its
    newest weights. ``at`` is Unix time in seconds.
    """

    trainer: str
    phase: TrainerPhase
    at: float = Field(default=0.0, ge=0)
