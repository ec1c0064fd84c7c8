"""Settings of the explorer: its task sets, steps, evaluation and the pace of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from explorer_mq.core.pacing import SyncStyle
from explorer_mq.settings.section import Section
from explorer_mq.tasksets.settings import TasksetSettings

Policy = Literal["on_policy", "one_step_off", "fully_async"]

POLICIES: dict[str, dict[str, Any]] = {
    "on_policy": {"sync_style": "fixed", "sync_interval": 1, "sync_offset": 0},
    "one_step_off": {"sync_style": "fixed", "sync_interval": 1, "sync_offset": 1},
    "fully_async": {"sync_style": "fully_async", "max_inflight_batches": 2},
}
"""What each usual set-up stands for; values given beside it must not contradict it."""


class ExplorerSettings(Section):
    """The loop over task sets; without ``tasksets`` batches come from ``submit`` alone."""

    tasksets: tuple[TasksetSettings, ...] = Field(
        default=(), description="training sets, mixed into steps"
    )
    eval_tasksets: tuple[TasksetSettings, ...] = Field(
        default=(), description="sets that are evaluated, each by itself"
    )
    batch_size: int = Field(default=32, ge=1, description="tasks of a step")
    total_epochs: int = Field(default=1, ge=1, description="how often the data is gone through")
    total_steps: int | None = Field(
        default=None, ge=1, description="steps of the run; default as total_epochs gives"
    )
    policy: Policy | None = Field(
        default=None,
        description="on_policy, one_step_off or fully_async: sets the four values below",
    )
    sync_style: SyncStyle = Field(
        default="fixed", description="fixed, explorer_driven, trainer_driven or fully_async"
    )
    sync_interval: int = Field(default=1, ge=1, description="steps between two synchronisations")
    sync_offset: int = Field(default=0, ge=0, description="further steps before the first one")
    max_inflight_batches: int = Field(
        default=2, ge=1, description="steps under way at once when fully asynchronous"
    )
    sync_timeout_s: float = Field(
        default=3600.0, gt=0, description="longest to wait for the trainer's next weights"
    )
    trainer: str = Field(default="trainer", description="name of the trainer whose weights count")
    checkpoint_dir: Path | None = Field(
        default=None, description="directory of global_step_N checkpoints, for --mode bench"
    )
    bench_on_latest_checkpoint: bool = Field(
        default=False, description="benchmark the latest checkpoint only"
    )
    eval_interval: int = Field(default=100, ge=1, description="steps between two evaluations")
    eval_on_startup: bool = Field(default=True, description="evaluate before the first step")

    @model_validator(mode="before")
    @classmethod
    def _expand_policy(cls, values: Any) -> Any:
        """Fill in what ``policy`` stands for."""
        if not isinstance(values, dict) or values.get("policy") not in POLICIES:
            return values
        wanted = POLICIES[values["policy"]]
        clash = {key: values[key] for key in wanted if key in values and values[key] != wanted[key]}
        if clash:
            key, value = next(iter(clash.items()))
            raise ValueError(
                f"policy {values['policy']!r} means {key} = {wanted[key]!r}, but {value!r} is given; "
                "leave one of them out"
            )
        return {**values, **wanted}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for sets in (self.tasksets, self.eval_tasksets):
            names = [one.name for one in sets]
            if len(set(names)) != len(names):
                raise ValueError(f"the names of task sets repeat: {', '.join(names)}")
        return self
