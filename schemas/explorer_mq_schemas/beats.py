"""What a worker says about itself, some times a second on change and at least every few seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from explorer_mq_schemas.messages import Message

WorkerState = Literal["starting", "ready", "updating", "draining", "stopped"]


class RunningSlice(Message):
    """A slice a worker is busy with; times are Unix seconds of the worker's clock."""

    batch: str
    task: int
    slice: int
    attempt: int
    started_at: float
    state: dict[str, str | int | float | bool] = Field(default_factory=dict)


class WorkerBeat(Message):
    """State of one worker.

    ``policy_version`` is the one its engine was verified to hold, ``policy_error`` why the newest
    could not be loaded. ``generated_tokens`` counts since start. ``sent_at`` is Unix time in seconds.
    """

    worker: str
    pools: tuple[str, ...]
    state: WorkerState
    slots: int
    running: tuple[RunningSlice, ...] = ()
    policy_version: int = 0
    policy_error: str = ""
    policies_loaded: int = 0
    generated_tokens: int = 0
    finished_slices: int = 0
    engine: str = ""
    model: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    started_at: float = 0.0
    sent_at: float = 0.0
