"""explorer-mq: the exploring half of reinforcement fine-tuning as message-queue driven actors.

The trainer clients are reachable from here and loaded on first use, so that importing the package
stays cheap and needs neither NATS nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explorer_mq.trainer import (
        SyncTrainBatch,
        SyncTrainerClient,
        TrainBatch,
        TrainerClient,
    )

__all__ = ["SyncTrainBatch", "SyncTrainerClient", "TrainBatch", "TrainerClient", "__version__"]

__version__ = "0.1.0"

_LAZY = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from explorer_mq import trainer

    return getattr(trainer, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
