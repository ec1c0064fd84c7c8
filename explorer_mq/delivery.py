"""Publishing a finished training batch, once."""

from __future__ import annotations

from explorer_mq.bus.connection import Bus, JetStreamError
from explorer_mq.bus.publisher import WRONG_LAST_SEQUENCE, Publisher
from explorer_mq_schemas.batches import TrainBatchManifest


async def publish_manifest(bus: Bus, publisher: Publisher, batch: TrainBatchManifest) -> int:
    """Make the training batch visible; returns the sequence of its manifest.

    The expectation "nothing on this subject yet" makes it idempotent: a coordinator that died after
    publishing finds its batch there and goes on.
    """
    subject = bus.names.train(str(batch.batch), 0)
    headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
    try:
        ack = await publisher.publish_wait(subject, batch.encode(), headers)
    except JetStreamError as error:
        if error.err_code != WRONG_LAST_SEQUENCE:
            raise
        stored = await bus.api(
            f"STREAM.MSG.GET.{bus.names.train_stream}", {"last_by_subj": subject}
        )
        return int(stored["message"]["seq"])
    return ack.seq
