"""explorer-mq: the exploring half of reinforcement fine-tuning as message-queue driven actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explorer_mq.coordinator import RolloutCoordinator
    from explorer_mq.scheduler import Scheduler
    from explorer_mq.trainer.client import TrainerClient
    from explorer_mq.trainer.sync import SyncTrainerClient

__version__ = "0.1.0"

__all__ = ["RolloutCoordinator", "Scheduler", "SyncTrainerClient", "TrainerClient", "__version__"]

_HOMES = {
    "RolloutCoordinator": "explorer_mq.coordinator",
    "Scheduler": "explorer_mq.scheduler",
    "SyncTrainerClient": "explorer_mq.trainer.sync",
    "TrainerClient": "explorer_mq.trainer.client",
}


def __getattr__(name: str) -> Any:
    """Public classes are imported when first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
