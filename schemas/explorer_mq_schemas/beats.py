"""What a worker says about itself, some times a second on change and at least every few seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from explorer_mq_schemas.messages import Message

WorkerState = Literal["starting", "ready", "updating", "draining", "stopped"]


StateValue = str | int | float | bool | None


class RunningSlice(Message):
    """A slice a worker is busy with, in its slot number ``slot``.

    Times are Unix seconds of the worker's clock; ``progress_at`` is when its runs last sampled a
    token, made a model call or noted a state. ``lease`` is the acknowledgement subject of its
    message: whoever sends ``-NAK`` there hands it to another worker. ``state`` is what its workflow
    noted, with ``workflow_id``, ``model_version``, ``begin_time`` and ``terminate_time``.
    """

    batch: str
    task: int
    slice: int
    attempt: int
    started_at: float
    slot: int = Field(default=0, ge=0)
    lease: str = ""
    calls: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    progress_at: float = 0.0
    state: dict[str, StateValue] = Field(default_factory=dict)


class Claim(Message):
    """A slice a worker has just been given; ``lease`` as in :class:`RunningSlice`."""

    batch: str
    task: int
    slice: int
    attempt: int = Field(ge=1)
    lease: str


class Claims(Message):
    """What a worker took since its last message, sent at once.

    Beats alone would come too late for a worker that is killed right after it took its slices.
    """

    worker: str
    claims: tuple[Claim, ...]


class WorkerBeat(Message):
    """State of one worker.

    ``policy_version`` is the one its engine was verified to hold, ``policy_error`` why the newest
    could not be loaded. ``generated_tokens`` counts since start. ``rejected_results`` were refused
    because another attempt was first, ``lost_leases`` ran out while the worker held them (it was
    stopped, or cut off). ``sent_at`` is Unix time in seconds. ``silence_s`` announces that the next
    beat may take that long: an engine that is being loaded keeps the process from sending any.
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
    rejected_results: int = 0
    lost_leases: int = 0
    engine: str = ""
    model: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    started_at: float = 0.0
    sent_at: float = 0.0
    silence_s: float = Field(default=0.0, ge=0)
