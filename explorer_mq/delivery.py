"""Publishing a finished training batch, once."""

from __future__ import annotations

from collections.abc import Sequence

from explorer_mq.bus.connection import Bus, JetStreamError
from explorer_mq.bus.publisher import WRONG_LAST_SEQUENCE, Publisher
from explorer_mq_schemas.batches import Parts, TrainBatchManifest
from explorer_mq_schemas.codec import count
from explorer_mq_schemas.ids import new_id


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


async def publish_experiences(
    bus: Bus, publisher: Publisher, payloads: Sequence[bytes]
) -> dict[str, float]:
    """Publish packed experiences as a training batch of their own; it appears whole or not at all.

    Raises:
        ContractError: a payload is malformed, or larger than a message may be.
    """
    counts = [count(payload) for payload in payloads]
    names, batch = bus.names, new_id("direct")
    acks = [
        await publisher.publish(names.train(batch, number), payload)
        for number, payload in enumerate(payloads, 1)
    ]
    metrics = {"experience_pipeline/experience_count": float(sum(counts))}
    manifest = TrainBatchManifest(
        run=names.run,
        batch=batch,
        tasks=len(payloads),
        finished_task_count=len(payloads),
        runs=sum(counts),
        completed_runs=sum(counts),
        experiences=sum(counts),
        metrics=metrics,
        parts=Parts(
            stream=names.train_stream,
            seq=tuple([(await ack).seq for ack in acks]),
            experiences=tuple(counts),
            bytes=tuple(len(payload) for payload in payloads),
        ),
    )
    await publish_manifest(bus, publisher, manifest)
    return metrics
