"""Settings of one task set."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field

from explorer_mq.settings.section import Section
from explorer_mq_schemas.tasks import DEFAULT_POOL, GenerationConfig


class FormatSettings(Section):
    """Which keys of a row mean what, and how its prompt is put to the model."""

    prompt_key: str | None = Field(default=None, description="key of the prompt; default prompt")
    response_key: str | None = Field(
        default=None, description="key of the reference answer; default answer"
    )
    system_prompt: str | None = Field(default=None, description="said before every prompt")
    chat: bool = Field(
        default=True, description="through the chat template; false takes prompts as they are"
    )
    workflow_key: str | None = Field(
        default=None, description="key of the row's own workflow, if it has one"
    )
    reward_fn_key: str | None = Field(
        default=None, description="key of the row's own reward, if it has one"
    )


class TasksetSettings(Section):
    """A set of tasks: where its rows are, what is done with them, in which order."""

    name: str = Field(min_length=1, description="names the set in metrics, batches and messages")
    path: str = Field(
        min_length=1,
        description="file.jsonl, file.parquet, a directory of Hugging Face datasets, "
        "reasoning_gym:NAME, or code as module:attr or path/file.py:attr",
    )
    subset: str | None = Field(
        default=None, description="configuration of a Hugging Face dataset in a directory"
    )
    split: str | None = Field(
        default=None, description="split of a Hugging Face dataset; default its only one, or train"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of load_dataset, of the reasoning_gym set or of the code",
    )
    max_rows: int | None = Field(
        default=None, ge=1, description="use only the first rows; default all"
    )
    format_args: FormatSettings = Field(
        default_factory=FormatSettings, description="the meaning of the rows' keys"
    )
    workflow: str | None = Field(
        default=None, description="workflow of rows that name none: an entry point or module:attr"
    )
    workflow_args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the workflow"
    )
    reward_fn: str | None = Field(
        default=None, description="reward of rows that name none: an entry point or module:attr"
    )
    reward_fn_args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the reward"
    )
    repeat_times: int | None = Field(
        default=None, ge=1, description="runs of a task (its group size)"
    )
    rollout_args: GenerationConfig = Field(
        default_factory=GenerationConfig, description="sampling parameters"
    )
    pool: str = Field(default=DEFAULT_POOL, description="pool of workers that gets the tasks")
    selector: str = Field(
        default="sequential",
        description="order of the rows: sequential, shuffle, random, offline_easy2hard, "
        "difficulty_based, an entry point or module:attr",
    )
    selector_args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the selector, e.g. feature_keys"
    )
    seed: int = Field(
        default=42, ge=0, description="seed of the selector, and of a generated set's rows"
    )

    def with_defaults(
        self,
        *,
        workflow: str | None = None,
        reward_fn: str | None = None,
        repeat_times: int | None = None,
    ) -> Self:
        """These settings, with the given values where they have none."""
        given = {"workflow": workflow, "reward_fn": reward_fn, "repeat_times": repeat_times}
        missing = {key: value for key, value in given.items() if getattr(self, key) is None}
        return self.model_copy(update=missing)
