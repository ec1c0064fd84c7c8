"""explorer-mq: the exploring half of reinforcement fine-tuning as message-queue driven actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explorer_mq.coordinator import RolloutCoordinator
    from explorer_mq.core.metrics import bootstrap_metric, calculate_task_level_metrics
    from explorer_mq.core.outcome import CompletedTaskResult
    from explorer_mq.core.records import TaskWrapper
    from explorer_mq.core.runners import RunningTaskState
    from explorer_mq.core.state import BatchState
    from explorer_mq.explorer import Explorer
    from explorer_mq.roster import RunnerWrapper
    from explorer_mq.scheduler import Scheduler
    from explorer_mq.trainer.client import TrainerClient
    from explorer_mq.trainer.sync import SyncTrainerClient
    from explorer_mq_schemas.batches import BatchLifecycleState
    from explorer_mq_schemas.ids import sort_batch_id
    from explorer_mq_schemas.tasks import Status

__version__ = "0.1.0"

__all__ = [
    "BatchLifecycleState",
    "BatchState",
    "CompletedTaskResult",
    "Explorer",
    "RolloutCoordinator",
    "RunnerWrapper",
    "RunningTaskState",
    "Scheduler",
    "Status",
    "SyncTrainerClient",
    "TaskWrapper",
    "TrainerClient",
    "__version__",
    "bootstrap_metric",
    "calculate_task_level_metrics",
    "sort_batch_id",
]

_HOMES = {
    "BatchLifecycleState": "explorer_mq_schemas.batches",
    "BatchState": "explorer_mq.core.state",
    "CompletedTaskResult": "explorer_mq.core.outcome",
    "Explorer": "explorer_mq.explorer",
    "RolloutCoordinator": "explorer_mq.coordinator",
    "RunnerWrapper": "explorer_mq.roster",
    "RunningTaskState": "explorer_mq.core.runners",
    "Scheduler": "explorer_mq.scheduler",
    "Status": "explorer_mq_schemas.tasks",
    "SyncTrainerClient": "explorer_mq.trainer.sync",
    "TaskWrapper": "explorer_mq.core.records",
    "TrainerClient": "explorer_mq.trainer.client",
    "bootstrap_metric": "explorer_mq.core.metrics",
    "calculate_task_level_metrics": "explorer_mq.core.metrics",
    "sort_batch_id": "explorer_mq_schemas.ids",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
