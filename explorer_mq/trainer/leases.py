"""A trainer's position in the finished batches: one durable consumer, leases with heartbeats.

The consumer remembers which manifests are acknowledged. A batch that is out, or fetched ahead, is
under a lease that a heartbeat extends; when the trainer dies, the same manifest comes again.
A trainer that starts takes over what its predecessor of the same name held, at once and in order,
instead of waiting for those leases to run out. Hence one live client per trainer name.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import orjson

from explorer_mq.bus.connection import Bus, JetStreamError, Msg, Subscription
from explorer_mq.bus.topology import ensure_trainer
from explorer_mq.trainer.backoff import until_reconnected
from explorer_mq.trainer.position import Position
from explorer_mq_schemas.errors import BusUnavailable, NotFound, TransientError

logger = logging.getLogger(__name__)

_NS = 1_000_000_000
_EXPIRES_S = 30.0
_HEARTBEAT_S = 2.0
_SILENT_S = 3 * _HEARTBEAT_S
_ACK_TIMEOUT_S = 30.0
_ACK_TRY_S = 2.0


class BatchLease:
    """One delivered manifest until it is acknowledged or handed back."""

    def __init__(self, message: Msg, source: BatchLeases) -> None:
        tokens = message.reply.split(".")
        self.data = message.data
        self.subject = message.subject
        self.delivery = int(tokens[4])
        self.seq = int(tokens[5])
        self.reply = message.reply
        self._source = source

    async def ack(self) -> None:
        """Confirmed acknowledgement; idempotent.

        Raises:
            BusUnavailable: not confirmed within 30 s.
        """
        await self._source.ack(self)

    async def terminate(self, reason: str) -> None:
        """Pass it over for good; ``reason`` shows in the server's advisory."""
        await self._source.terminate(self, reason)


class BatchLeases:
    """Pulls manifests one by one and keeps their leases alive."""

    def __init__(self, bus: Bus, trainer: str, *, lease_s: float) -> None:
        names = bus.names
        self._bus = bus
        self._trainer = trainer
        self._lease_s = lease_s
        self._stream = names.train_stream
        self._consumer = names.trainer_consumer(trainer)
        self._arrived: deque[BatchLease] = deque()
        self._held: dict[int, BatchLease] = {}
        self._done: set[int] = set()
        self._position = Position(bus, trainer)
        self._wake = asyncio.Event()
        self._asked = False
        self._heard_at = 0.0
        self._gone = ""
        self._unserved = False
        self._closed = False
        self._subscription: Subscription | None = None
        self._forget_reconnect: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Create the durable consumer if it is new, and take over the predecessor's leases.

        Raises:
            NotFound: the run has no stream of training batches.
        """
        await ensure_trainer(self._bus, self._trainer, lease_s=self._lease_s)
        self._inbox = self._bus.new_inbox()
        self._subscription = await self._bus.subscribe(self._inbox, self._hear)
        self._forget_reconnect = self._bus.on_reconnect(self._ask_anew)
        await self._take_over()

    async def close(self) -> None:
        """Stop pulling and hand back everything that is not acknowledged."""
        self._forget_reconnect()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        self._closed = True
        held, self._held = self._held, {}
        try:
            for seq in sorted(held):
                await self._bus.publish(held[seq].reply, b"-NAK")
        except BusUnavailable as error:
            logger.debug("trainer=%s leases run out by themselves: %s", self._trainer, error)

    async def take(self) -> BatchLease:
        """The next manifest, in the order of publication.

        Raises:
            NotFound: the consumer was deleted, and the trainer's position with it.
        """
        while not self._arrived:
            self._wake.clear()
            if self._unserved:
                await self._look_for_consumer()
            if self._gone:
                raise NotFound(
                    f"trainer {self._trainer} of run {self._bus.names.run} lost its position: "
                    f"{self._gone}; a new connection starts with the oldest batch still stored"
                )
            await self._ask()
            try:
                async with asyncio.timeout(_SILENT_S):
                    await self._wake.wait()
            except TimeoutError:
                silent_s = asyncio.get_running_loop().time() - self._heard_at
                self._asked = self._asked and silent_s < _SILENT_S
        return self._arrived.popleft()

    async def ack(self, lease: BatchLease) -> None:
        """Settle ``lease``; see :meth:`BatchLease.ack`."""
        if lease.seq in self._done:
            return
        try:
            async with asyncio.timeout(_ACK_TIMEOUT_S):
                await self._confirm(lease)
        except TimeoutError as error:
            raise BusUnavailable(
                f"the acknowledgement of {lease.subject} was not confirmed within "
                f"{_ACK_TIMEOUT_S:g} s; the batch may be delivered to trainer {self._trainer} again"
            ) from error
        self._done.add(lease.seq)
        self._held.pop(lease.seq, None)

    async def terminate(self, lease: BatchLease, reason: str) -> None:
        """Settle ``lease`` unused; see :meth:`BatchLease.terminate`."""
        self._held.pop(lease.seq, None)
        self._done.add(lease.seq)
        await self._bus.publish(lease.reply, b"+TERM " + reason.encode()[:200])

    async def extend_forever(self) -> None:
        """Extend every held lease three times per lease time; runs until it is cancelled."""
        never = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    await never.wait()
            except TimeoutError:
                await self._extend_all()

    async def _extend_all(self) -> None:
        for lease in list(self._held.values()):
            try:
                await self._bus.publish(lease.reply, b"+WPI")
            except BusUnavailable as error:
                logger.warning("lease of %s not extended: %s", lease.subject, error)
                return

    async def _confirm(self, lease: BatchLease) -> None:
        """Ask until the server answers; an acknowledgement may be repeated freely."""
        while not self._closed:
            try:
                await self._position.add(lease.seq)
                await self._bus.request(lease.reply, b"+ACK", timeout_s=_ACK_TRY_S)
            except TransientError as error:
                logger.warning("acknowledging %s again: %s", lease.subject, error)
                await until_reconnected(self._bus, at_most_s=1.0)
            else:
                return
        raise BusUnavailable(
            f"{lease.subject} was not acknowledged before trainer {self._trainer} closed; it was "
            "handed back and will be delivered again"
        )

    async def _take_over(self) -> None:
        """Learn the position, and hand back what a dead predecessor had not acknowledged.

        The server looks a hand-over up by stream sequence and ignores one that is not pending, so
        the exact acknowledgement subjects need not be known.
        """
        state = await self._bus.api(f"CONSUMER.INFO.{self._stream}.{self._consumer}")
        await self._position.load(state)
        if not state.get("num_ack_pending"):
            return
        delivered = state["delivered"]
        first, last = int(state["ack_floor"]["stream_seq"]) + 1, int(delivered["stream_seq"])
        replies = [
            f"$JS.ACK.{self._stream}.{self._consumer}.1.{seq}.{delivered['consumer_seq']}.0.0"
            for seq in range(first, last + 1)
        ]
        for reply in replies[:-1]:
            await self._bus.publish(reply, b"-NAK")
        # Pulls overtake acknowledgements inside the server: ask only when all are processed.
        await self._bus.request(replies[-1], b"-NAK")

    async def _look_for_consumer(self) -> None:
        """Nobody answers pulls: the consumer is gone, or a server has yet to load it."""
        try:
            await self._bus.api(f"CONSUMER.INFO.{self._stream}.{self._consumer}")
        except NotFound as error:
            self._gone = str(error)
        except TransientError as error:
            logger.warning("trainer=%s waits for its consumer: %s", self._trainer, error)
            await until_reconnected(self._bus, at_most_s=1.0)
        self._unserved = False

    async def _ask(self) -> None:
        if self._asked:
            return
        self._asked = True
        self._heard_at = asyncio.get_running_loop().time()
        body = {
            "batch": 1,
            "expires": int(_EXPIRES_S * _NS),
            "idle_heartbeat": int(_HEARTBEAT_S * _NS),
        }
        try:
            await self._bus.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                orjson.dumps(body),
                reply=self._inbox,
            )
        except BusUnavailable as error:
            logger.warning("trainer=%s waits for the server: %s", self._trainer, error)

    def _ask_anew(self) -> None:
        """Pull requests die with the connection."""
        self._asked = False
        self._wake.set()

    async def _hear(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers
        if headers and "Status" in headers and not message.reply.startswith("$JS.ACK"):
            self._hear_status(headers["Status"], headers.get("Description", ""))
            return
        self._asked = False
        await self._hear_batch(BatchLease(message, self))
        self._wake.set()

    async def _hear_batch(self, lease: BatchLease) -> None:
        """Queue a manifest that is new to this client.

        A repeat is no news: its lease ran out while this process could not extend it, or the
        server forgot an acknowledgement when it was killed.
        """
        known = self._held.get(lease.seq)
        if known is not None:
            known.reply = lease.reply
        elif lease.seq in self._done or lease.seq in self._position:
            await self._bus.publish(lease.reply, b"+ACK")
        else:
            self._held[lease.seq] = lease
            self._arrived.append(lease)

    def _hear_status(self, status: str, description: str) -> None:
        if status == "100":
            return
        self._asked = False
        if status == "409" and "Deleted" in description:
            self._gone = description
        self._unserved = status == "503"
        self._wake.set()


async def wait_for_run(bus: Bus) -> None:
    """Return once the run's streams exist, waiting for their creation.

    Raises:
        BusUnavailable, PermissionRefused: the server does not answer.
    """
    stream = bus.names.state_stream  # the last one that a coordinator creates
    created = asyncio.Event()

    async def note(_: Msg) -> None:
        created.set()

    advisories = await bus.subscribe(f"$JS.EVENT.ADVISORY.STREAM.CREATED.{stream}", note)
    forget = bus.on_reconnect(created.set)
    try:
        while not await _exists(bus, stream):
            logger.warning("run=%s does not exist yet; waiting for its coordinator", bus.names.run)
            await created.wait()
            created.clear()
    finally:
        forget()
        await advisories.unsubscribe()


async def _exists(bus: Bus, stream: str) -> bool:
    try:
        await bus.api(f"STREAM.INFO.{stream}")
    except NotFound:
        return False
    except JetStreamError as error:
        raise BusUnavailable(f"stream {stream} cannot be read: {error}") from error
    return True
