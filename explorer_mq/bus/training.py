"""The training stream as one trainer reads it: manifests under a lease, payloads in bulk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from explorer_mq.bus.connection import Bus, Msg
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.objects import get_object
from explorer_mq.bus.puller import HEARTBEAT_S, Puller
from explorer_mq.bus.results import parse_report
from explorer_mq.bus.topology import ensure_trainer
from explorer_mq_schemas.batches import TrainBatchManifest
from explorer_mq_schemas.errors import BusUnavailable, NotFound
from explorer_mq_schemas.ids import encode_token
from explorer_mq_schemas.results import Result

logger = logging.getLogger(__name__)


class BatchLease:
    """A training batch out with a trainer until it is acknowledged."""

    def __init__(self, bus: Bus, message: Msg, source: BatchSource) -> None:
        self._bus = bus
        self._source = source
        self._reply = message.reply
        self.delivery = int(message.reply.split(".")[4])
        self.seq = int(message.reply.split(".")[5])
        self.manifest = TrainBatchManifest.decode(message.data)

    async def ack(self) -> None:
        """Done for good; returns when the server has recorded it.

        Raises:
            BusUnavailable: it has not; calling again is safe.
        """
        await self._bus.request(self._reply, b"+ACK")
        self._source.forget(self)

    async def extend(self) -> None:
        """Start the lease anew."""
        await self._bus.publish(self._reply, b"+WPI")

    async def hand_back(self) -> None:
        """Deliver it again, at once."""
        self._source.forget(self)
        await self._bus.publish(self._reply, b"-NAK")


class BatchSource:
    """Training batches for one named trainer, in order, at most ``prefetch`` out at a time."""

    def __init__(self, bus: Bus, trainer: str, *, prefetch: int, lease_s: float) -> None:
        self._bus = bus
        self._trainer = trainer
        self._prefetch = prefetch
        self._lease_s = lease_s
        names = bus.names
        self._puller = Puller(
            bus, names.train_stream, names.trainer_consumer(trainer), self._receive, self._note
        )
        self._held: set[BatchLease] = set()
        self._waiting: deque[BatchLease] = deque()
        self._arrived = asyncio.Event()
        self._wake = asyncio.Event()
        self._renew = False
        self._tasks: list[asyncio.Task[None]] = []
        self._forget_reconnect = bus.on_reconnect(lambda: self._note(renew=True))

    async def start(self) -> None:
        """Create the trainer's durable consumer if it is new, and begin.

        Raises:
            NotFound: the run does not exist yet.
        """
        try:
            await ensure_trainer(self._bus, self._trainer, lease_s=self._lease_s)
        except NotFound as error:
            run = self._bus.names.run
            raise NotFound(
                f"run {run!r} does not exist; start its coordinator first "
                f"(`explorer-mq coordinator --run {run}`)"
            ) from error
        await self._puller.open()
        self._tasks = [
            asyncio.create_task(self._pull_loop(), name="training pulls"),
            asyncio.create_task(self._extend_loop(), name="training leases"),
        ]

    async def close(self) -> None:
        """Stop; batches that were not acknowledged go back at once."""
        self._forget_reconnect()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._puller.close()
        for lease in list(self._held):
            await lease.hand_back()

    async def take(self) -> BatchLease:
        """The next batch."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def forget(self, lease: BatchLease) -> None:
        """``lease`` is settled."""
        self._held.discard(lease)
        self._note(renew=False)

    def _receive(self, message: Msg) -> None:
        lease = BatchLease(self._bus, message, self)
        self._held.add(lease)
        self._waiting.append(lease)
        self._arrived.set()

    def _note(self, *, renew: bool) -> None:
        self._renew = self._renew or renew
        self._wake.set()

    async def _pull_loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self._renew:
                    self._renew = False
                    await self._puller.open()
                await self._puller.ask(self._prefetch - len(self._held) - self._puller.outstanding)
            except BusUnavailable as error:
                logger.warning("pulling training batches paused: %s", error)
            try:
                async with asyncio.timeout(2 * HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                self._renew = self._puller.is_silent

    async def _extend_loop(self) -> None:
        never = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    await never.wait()
            except TimeoutError:
                for lease in list(self._held):
                    await lease.extend()


async def read_payloads(
    bus: Bus, manifest: TrainBatchManifest
) -> list[tuple[int, bytes | bytearray]]:
    """Task number and packed experiences of every part of the batch, in the manifest's order; one read for all.

    Raises:
        NotFound: parts are gone; the result stream's retention is too short for this trainer.
    """
    wanted = manifest.parts.seq
    if not wanted:
        return []
    names = bus.names
    token = encode_token(str(manifest.batch))
    kind = "result" if manifest.parts.stream == names.results_stream else "train"
    filters = [f"{names.root}.{kind}.{token}.>"]
    found: dict[int, tuple[int, bytes | bytearray]] = {}
    open_parts = set(wanted)
    stream = manifest.parts.stream
    async with Follower(bus, stream, filters, start_seq=min(wanted)) as follower:
        backlog, seen = follower.backlog, 0
        while open_parts and seen < backlog:
            for message in await follower.next_batch():
                seen += 1
                if message.seq not in open_parts:
                    continue
                open_parts.discard(message.seq)
                key, report = parse_report(names, message)
                if isinstance(report, Result) and report.object is not None:
                    found[message.seq] = (key.task, await get_object(bus, stream, report.object))
                else:
                    found[message.seq] = (key.task, message.data)
    if open_parts:
        raise NotFound(
            f"batch {manifest.batch!r}: {len(open_parts)} of {len(wanted)} parts are gone from "
            f"{stream}; raise streams.results_max_age_s or results_max_bytes"
        )
    return [found[seq] for seq in wanted]
