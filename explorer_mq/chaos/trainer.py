"""Trainers of a chaos run: one in the harness itself, one as a process that is killed.

The process (``python -m explorer_mq.chaos.trainer RUN URL NAME``) prints a line of JSON per event: a
batch was received, its acknowledgement is confirmed.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import orjson

from explorer_mq.chaos.audit import Delivery
from explorer_mq.trainer.batch import BatchContent
from explorer_mq.trainer.client import TrainerClient
from explorer_mq.trainer.sync import SyncTrainerClient
from explorer_mq_schemas.errors import BusUnavailable, ExplorerError

logger = logging.getLogger(__name__)

LEASE_S = 5.0


def delivery_of(trainer: str, batch: BatchContent) -> Delivery:
    """What the audit needs of a batch, unpacked as a trainer would."""
    arrays = batch.arrays()
    pairs = zip(arrays["task"].tolist(), arrays["run"].tolist(), strict=True)
    manifest = batch.manifest
    digest = hashlib.sha256(manifest.encode())
    for payload in batch.payloads:
        digest.update(payload)
    return Delivery(
        trainer=trainer,
        batch=str(batch.batch_id),
        digest=digest.hexdigest(),
        is_acked=False,
        pairs=tuple(pairs),
        origins=tuple(str(one.info.get("origin")) for one in batch.experiences()),
        seqs=manifest.parts.seq,
        experiences=manifest.experiences,
        runs=manifest.runs,
        completed_runs=manifest.completed_runs,
    )


class Deliveries:
    """All batches that trainers got, in their order."""

    def __init__(self, on_batch: Callable[[Delivery], None]) -> None:
        self._on_batch = on_batch
        self._last: dict[tuple[str, str], int] = {}
        self.all: list[Delivery] = []

    def received(self, delivery: Delivery) -> None:
        """A trainer got a batch."""
        self._last[delivery.trainer, delivery.batch] = len(self.all)
        self.all.append(delivery)
        self._on_batch(delivery)

    def acked(self, trainer: str, batch: str) -> None:
        """The server has confirmed the acknowledgement of the last delivery."""
        at = self._last[trainer, batch]
        self.all[at] = replace(self.all[at], is_acked=True)

    def names(self, trainer: str) -> set[str]:
        """Batches that ``trainer`` got at least once."""
        return {batch for name, batch in self._last if name == trainer}

    def hear(self, line: bytes) -> None:
        """A line of the trainer process; one cut off by its end is no line."""
        try:
            event: dict[str, Any] = orjson.loads(line)
        except orjson.JSONDecodeError:
            logger.warning("half a line of a killed trainer: %r", line[:80])
            return
        if "acked" in event:
            self.acked(event["trainer"], event["acked"])
            return
        event["pairs"] = tuple((task, run) for task, run in event["pairs"])
        for name in ("origins", "seqs"):
            event[name] = tuple(event[name])
        self.received(Delivery(**event))


async def train(run: str, url: str, name: str, deliveries: Deliveries) -> None:
    """Receive and acknowledge for ever.

    Raises:
        ExplorerError: the client gave up, which no fault of this harness may cause.
    """
    async with TrainerClient(run, url, name, lease_s=LEASE_S) as client:
        async for batch in client.batches():
            deliveries.received(delivery_of(name, batch))
            try:
                await batch.ack()
            except BusUnavailable as error:
                logger.warning("trainer=%s %s", name, error)
            else:
                deliveries.acked(name, str(batch.batch_id))


def main(run: str, url: str, name: str) -> int:
    """The trainer process: until it is killed."""
    try:
        with SyncTrainerClient(run, url, name, lease_s=LEASE_S) as client:
            for batch in client.batches():
                _say(asdict(delivery_of(name, batch)))
                batch.ack()
                _say({"trainer": name, "acked": str(batch.batch_id)})
    except ExplorerError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


def _say(event: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(event) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
