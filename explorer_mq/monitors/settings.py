"""Settings of the monitors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from explorer_mq.settings.section import Section


def _split_commas(value: Any) -> Any:
    """``"a,b"`` from a shell is as good as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _without_repeats(value: Any) -> Any:
    found = _split_commas(value)
    return tuple(dict.fromkeys(found)) if isinstance(found, list | tuple) else found


class MonitorSettings(Section):
    """Where metrics go besides JSON lines, which are always written."""

    kinds: Annotated[tuple[str, ...], BeforeValidator(_without_repeats)] = Field(
        default=(),
        description="tensorboard, wandb, trackio, swanlab, mlflow, module:attr; comma-separated",
    )
    dir: Path = Field(
        default=Path(".explorer-mq/monitors"),
        description="where files go; <dir>/<name>/metrics.jsonl holds the JSON lines",
    )
    project: str = Field(
        default="explorer-mq", min_length=1, description="project the tools show the run under"
    )
    name: str = Field(
        default="", description="name the tools show for the run; default the run's own"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="further options of a tool by its kind, e.g. {wandb: {mode: online}}",
    )
    detailed_stats: bool = Field(
        default=False, description="evals also log max, min and std over their tasks"
    )
