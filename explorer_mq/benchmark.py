"""Evaluating checkpoints: each in turn is published as a policy version, loaded, and evaluated."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.publisher import Publisher
from explorer_mq.trainer.policy import PolicyWriter
from explorer_mq_schemas.errors import ConfigError

logger = logging.getLogger(__name__)

_STEP = re.compile(r"global_step_(\d+)\Z")
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint directory; ``step`` is None for the base model."""

    name: str
    step: int | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Metrics of one checkpoint over all eval sets, and the policy version it was loaded as."""

    checkpoint: str
    policy_version: int
    metrics: dict[str, float] = field(default_factory=dict)


def find_checkpoints(directory: Path, *, latest_only: bool, with_base: bool) -> list[Checkpoint]:
    """The directories ``global_step_N`` below ``directory`` by N, the base model first if asked for.

    Raises:
        ConfigError: there is nothing to benchmark, or a directory holds no whole checkpoint.
    """
    found = [
        Checkpoint(path.name, int(match[1]), path)
        for path in (directory.iterdir() if directory.is_dir() else ())
        if (match := _STEP.match(path.name))
    ]
    found.sort(key=_step)
    for one in found:
        assert one.path is not None
        if not (one.path / _WEIGHTS).is_file():
            raise ConfigError(
                f"explorer.checkpoint_dir: {one.path} holds no {_WEIGHTS}; a checkpoint is one "
                "safetensors file of Hugging Face tensor names"
            )
    if latest_only:
        found = found[-1:]
    if with_base:
        found.insert(0, Checkpoint("base"))
    if not found:
        raise ConfigError(f"explorer.checkpoint_dir: no global_step_N below {directory}")
    return found


async def publish_checkpoint(bus: Bus, checkpoint: Checkpoint) -> int:
    """Announce the checkpoint's weights as the next policy version; 0 for the base model."""
    if checkpoint.path is None:
        return 0
    async with Publisher(bus) as publisher:
        writer = PolicyWriter(bus, publisher, "benchmark")
        newest = await writer.newest()
        version = 1 if newest is None else newest.version + 1
        await writer.publish_file(checkpoint.path / _WEIGHTS, version)
        return version


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.step or 0
