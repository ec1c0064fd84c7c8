"""Tasks, the slices they are cut into, and the status that comes back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from explorer_mq_schemas.messages import Message
from explorer_mq_schemas.subjects import Lane, SliceKey

BatchType = Literal["train", "eval"]

DEFAULT_POOL = "default"


class GenerationConfig(Message):
    """Sampling parameters of one request; ``None`` leaves the engine's own default.

    Units: ``max_tokens`` counts new tokens; ``temperature`` divides the logits, 0 is greedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = -1
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: bool = True
    extra: dict[str, Any] = Field(default_factory=dict)


class Task(Message):
    """One problem and how to roll it out; code is named (``module:attr`` or entry point), not shipped.

    ``repeat_times`` is the group size: how many runs, and so at least how many experiences, the task
    yields. ``raw_task`` is the row of the task set; ``format_args`` says which of its keys hold the
    prompt and the answer. ``index`` is where the task set found it, handed back for feedback.
    """

    workflow: str = "single_turn"
    repeat_times: int | None = Field(default=None)
    raw_task: dict[str, Any] = Field(default_factory=dict)
    format_args: dict[str, Any] = Field(default_factory=dict)
    rollout_args: GenerationConfig = Field(default_factory=GenerationConfig)
    workflow_args: dict[str, Any] = Field(default_factory=dict)
    reward_fn: str | None = None
    reward_fn_args: dict[str, Any] = Field(default_factory=dict)
    is_eval: bool = False
    pool: str = DEFAULT_POOL
    index: dict[str, Any] = Field(default_factory=dict)
    batch_id: int | str = ""
    task_id: int | str = ""

    @property
    def task_desc(self) -> str | None:
        """The prompt text: ``raw_task[format_args["prompt_key"]]`` (key ``prompt`` by default)."""
        return self.raw_task.get(self.format_args.get("prompt_key", "prompt"))

    @property
    def truth(self) -> Any:
        """The reference answer: ``raw_task[format_args["response_key"]]`` (``answer`` by default)."""
        return self.raw_task.get(self.format_args.get("response_key", "answer"))


class Slice(Message):
    """The runs of one task given to one worker: one message, the unit of lease and retry.

    ``run_ids`` are the group's run indices this slice covers: consecutive ones at first, only the
    missing ones in a retry. ``attempts_used`` counts attempts spent on these runs by earlier slices.
    ``timeout_s`` limits one attempt; a dynamic timeout may shorten it. An attempt that samples no
    token, makes no model call and notes no state for ``stall_timeout_s`` is ended too.
    """

    batch: str
    task_number: int = Field(ge=0)
    number: int = Field(ge=0)
    run_ids: tuple[int, ...] = Field(min_length=1)
    task: Task
    max_attempts: int = Field(default=3, ge=1)
    attempts_used: int = Field(default=0, ge=0)
    timeout_s: float = Field(default=1800.0, gt=0)
    stall_timeout_s: float | None = Field(default=None, gt=0)
    lane: Lane = Lane.NORMAL
    traceparent: str | None = None

    @field_validator("run_ids")
    @classmethod
    def _distinct_runs(cls, run_ids: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(run_ids)) != len(run_ids) or min(run_ids) < 0:
            raise ValueError("run_ids must be distinct and not negative")
        return run_ids

    @property
    def key(self) -> SliceKey:
        """The slice's name."""
        return SliceKey(self.batch, self.task_number, self.number)


class Status(Message):
    """Outcome of a task (or of one call of a workflow runner).

    ``metrics`` holds one mapping per run at run level, a single one at task level. ``message`` is
    None when all runs completed, else ``"k/n runs completed successfully. First error: ..."``.
    """

    completed_runs: int = Field(ge=0)
    total_runs: int = Field(ge=0)
    metrics: tuple[dict[str, float], ...] = ()
    message: str | None = None
    task_id: int | str | None = None

    @property
    def ok(self) -> bool:
        """All runs completed; 0 of 0 counts as ok."""
        return self.completed_runs == self.total_runs
