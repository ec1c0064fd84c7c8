"""Policy versions: what a trainer announces."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from explorer_mq_schemas.messages import Message, ObjectRef

Channel = Literal["object", "path", "group"]


class PolicyAnnouncement(Message):
    """The newest policy version and how to get its weights.

    Written to the state bucket under ``policy`` only after the weights are complete. With channel
    ``object`` the payload is one safetensors buffer of Hugging Face tensor names; with ``path`` it
    is a directory all workers can read. ``announced_at`` is Unix time in seconds.
    """

    version: int = Field(ge=0)
    channel: Channel
    object: ObjectRef | None = None
    path: str | None = None
    trainer: str = ""
    announced_at: float = 0.0
