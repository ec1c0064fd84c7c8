"""Trainers: read finished batches, publish new weights.

``TrainerClient`` is for asyncio programs. ``SyncTrainerClient`` is for plain scripts; its network
side runs in a thread of its own, so a long optimizer step never delays a lease.
"""

from __future__ import annotations

from explorer_mq.trainer.batch import SyncTrainBatch, TrainBatch
from explorer_mq.trainer.client import TrainerClient
from explorer_mq.trainer.sync import SyncTrainerClient

__all__ = ["SyncTrainBatch", "SyncTrainerClient", "TrainBatch", "TrainerClient"]
