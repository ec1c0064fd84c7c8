"""What a worker says about a slice.

A result's status travels in one ASCII JSON header, so that the coordinator can read it without the
payload (consumer option ``headers_only``).
"""

from __future__ import annotations

import json
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from explorer_mq_schemas.messages import Message, ObjectRef

RESULT_HEADER = "Exmq-Result"
ATTEMPT_HEADER = "Exmq-Attempt"
MAX_ERROR_CHARS = 4000


class Failure(Message):
    """Why a run did not succeed: family code of the error tree, exception class, text, traceback."""

    code: str
    kind: str
    message: str
    traceback: str = ""

    @field_validator("kind", "message", "traceback")
    @classmethod
    def _without_surrogates(cls, text: str) -> str:
        # File names in error messages may hold them (os.fsdecode), JSON may not.
        return text.encode(errors="replace").decode()


class _Report(Message):
    """What results and attempt records share; encoded into a header, hence ASCII on one line."""

    worker: str
    attempt: int = Field(ge=1)
    seconds: float = Field(ge=0)
    failure: Failure | None = None

    def to_header(self) -> str:
        """One line of ASCII JSON."""
        return json.dumps(self._wire_fields(), separators=(",", ":"), allow_nan=False)


class Result(_Report):
    """Header of a result message; its payload is the packed experiences of ``completed`` runs.

    The first result of a slice wins; it is complete (``completed == run_ids``), partial, or failed
    (``completed == ()``). ``metrics[i]`` belongs to run ``completed[i]``. Policy versions are the
    lowest and highest that sampled a token. ``object`` points to the payload when it exceeds the
    server's message limit. ``seconds`` is the wall time of this attempt.
    """

    run_ids: tuple[int, ...]
    completed: tuple[int, ...] = ()
    metrics: tuple[dict[str, float], ...] = ()
    experiences: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    policy_version_min: int | None = None
    policy_version_max: int | None = None
    object: ObjectRef | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        done = set(self.completed)
        if len(done) != len(self.completed) or not done.issubset(self.run_ids):
            raise ValueError("completed must be distinct runs of run_ids")
        return self

    @property
    def missing(self) -> tuple[int, ...]:
        """Runs of the slice that did not complete."""
        done = set(self.completed)
        return tuple(run for run in self.run_ids if run not in done)


AttemptEnd = Literal["failed", "timeout", "stalled", "drained", "cancelled", "lost", "rejected"]


class Attempt(_Report):
    """Record of an attempt that ended without a result; the slice was handed back.

    ``excused`` counts the deliveries of the slice so far that do not use its budget (drained or
    rejected ones), so that attempt = delivery count - excused.
    """

    end: AttemptEnd
    excused: int = Field(default=0, ge=0)
    retry_in_s: float = Field(default=0.0, ge=0)


class DeadLetter(Message):
    """A slice or message that was given up, with all that is known about why.

    ``body`` is the original message as text; ``history`` are its recorded attempts, oldest first.
    """

    subject: str
    reason: str
    worker: str
    attempts: int = 0
    failure: Failure | None = None
    history: tuple[Attempt, ...] = ()
    body: str = ""
