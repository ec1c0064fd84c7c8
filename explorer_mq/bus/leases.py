"""Leases: extended while the work goes on, lost when that fails for too long, settled once.

A lease is counted as extended only when the server has answered, and from the moment it was asked:
our idea of the end of a lease is never later than the server's. A lost lease may belong to another
worker by now, so it is neither extended nor handed back any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import suppress

import orjson

from explorer_mq.bus.connection import Bus, JetStreamError, Msg, NoResponders
from explorer_mq.bus.objects import get_object
from explorer_mq.bus.patience import Patience
from explorer_mq_schemas.errors import BusUnavailable, ContractError, NotFound
from explorer_mq_schemas.messages import ObjectRef
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_schemas.tasks import Slice

logger = logging.getLogger(__name__)

OBJECT_HEADER = "Exmq-Object"
"""Marks a message that only refers to its slice, which exceeds the message limit."""

_NS = 1_000_000_000
_ACK = b"+ACK"
_EXTEND = b"+WPI"


class Lease:
    """One delivered slice until it is settled.

    ``slice`` is None for a message that breaks the contract; ``error`` then says why. ``delivery``
    counts how often the server has given this slice out. ``ack_subject`` is where whoever knows it
    can settle the slice.
    """

    def __init__(self, bus: Bus, message: Msg, keeper: LeaseKeeper) -> None:
        self._bus = bus
        self._keeper = keeper
        self.ack_subject = message.reply
        self.subject = message.subject
        self.raw = message.data
        self.is_object = bool(message.headers and OBJECT_HEADER in message.headers)
        self.delivery = int(message.reply.split(".")[4])
        self.slice: Slice | None = None
        self.key: SliceKey | None = None
        self.error: ContractError | None = None
        self.extended_at = time.monotonic()
        self._is_lost = False

    @property
    def is_lost(self) -> bool:
        """The lease was not extended in time; remains so."""
        if not self._is_lost and time.monotonic() - self.extended_at > self._keeper.lease_s:
            self._is_lost = True
            self._keeper.lose(self)
        return self._is_lost

    async def open(self) -> None:
        """Parse the message; never raises for what it holds."""
        try:
            self.key = self._bus.names.parse_slice(self.subject)
            body: bytes | bytearray = self.raw
            if self.is_object:
                body = await self._fetch(ObjectRef.decode(self.raw))
            self.slice = Slice.decode(body)
            if self.slice.key != self.key:
                self.slice = None
                raise ContractError(f"slice on {self.subject} names another: {self.key}")
        except NotFound as error:
            self.error = ContractError(str(error))
        except ContractError as error:
            self.error = error

    async def ack(self) -> None:
        """Done: the slice leaves the queue. Only after its result is stored.

        Allowed for a lost lease too: whoever holds the slice now works for nothing.
        """
        await self._keeper.ack(self)

    async def hand_back(self, delay_s: float = 0.0) -> None:
        """Let another worker have it, ``delay_s`` from now; a lost lease is only forgotten."""
        body = b"-NAK"
        if delay_s > 0:
            body += b" " + orjson.dumps({"delay": int(delay_s * _NS)})
        await self._end(body)

    async def terminate(self, reason: str) -> None:
        """Remove it without a result; the reason shows in the server's advisory.

        A lost lease is only forgotten.
        """
        await self._end(b"+TERM " + reason.encode()[:200])

    async def _end(self, verb: bytes) -> None:
        is_lost = self.is_lost
        self._keeper.forget(self)
        if not is_lost:
            # Unsent while disconnected, the verb would arrive at the reconnect: too late perhaps.
            await self._keeper.send(self.ack_subject, verb)

    async def _fetch(self, ref: ObjectRef) -> bytearray:
        stream = self._bus.names.results_stream
        return await self._keeper.patience.until_done(
            lambda: get_object(self._bus, stream, ref), "reading a large slice"
        )


class LeaseKeeper:
    """Extends the leases of one worker three times per lease time, and at once after a reconnect.

    The server's answers also confirm the acknowledgements sent before, since it reads a connection
    in order. What was not confirmed when the connection broke is sent again.
    """

    def __init__(self, bus: Bus, *, lease_s: float) -> None:
        self._bus = bus
        self.lease_s = lease_s
        self.patience = Patience(bus)
        self.lost = 0
        """Leases that ran out while they were held here."""
        self._held: set[Lease] = set()
        self._acked: list[str] = []
        self._is_failing = False
        self._reconnected = asyncio.Event()

    @property
    def held(self) -> int:
        """Leases that are neither settled nor lost."""
        return len(self._held)

    def hold(self, lease: Lease) -> None:
        """Extend ``lease`` from now on."""
        self._held.add(lease)

    def forget(self, lease: Lease) -> None:
        """Extend ``lease`` no more."""
        self._held.discard(lease)

    def lose(self, lease: Lease) -> None:
        """``lease`` was not extended in time."""
        self.lost += 1
        self.forget(lease)
        logger.warning(
            "lease lost: %s was not extended for more than %g s; this process was stopped or cut "
            "off from the server, and another worker may have the slice now",
            lease.subject,
            self.lease_s,
        )

    async def ack(self, lease: Lease) -> None:
        """Acknowledge, again after each reconnect until the server has surely heard it."""
        self.forget(lease)
        self._acked.append(lease.ack_subject)
        await self.send(lease.ack_subject, _ACK)

    async def send(self, subject: str, verb: bytes) -> None:
        """Send a verb, unless there is no server to hear it."""
        if self._bus.is_connected:
            with suppress(BusUnavailable):  # closed or full: as good as not connected
                await self._bus.publish(subject, verb)

    async def run(self) -> None:
        """Keep the leases until cancelled."""
        forget = self._bus.on_reconnect(self._reconnected.set)
        try:
            await self._keep()
        finally:
            forget()

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.lease_s / 3):
                    await self._reconnected.wait()
            if self._reconnected.is_set():
                self._reconnected.clear()
                for subject in self._acked:
                    await self.send(subject, _ACK)
            if self._bus.is_connected:
                await self._sweep()

    async def _sweep(self) -> None:
        acked = len(self._acked)
        groups: dict[str, list[Lease]] = defaultdict(list)
        for lease in list(self._held):
            if not lease.is_lost:
                consumer = ".".join(lease.ack_subject.split(".")[:4])
                groups[consumer].append(lease)
        if groups:
            heard = await asyncio.gather(*(self._extend(group) for group in groups.values()))
        elif acked:
            heard = [await self._is_heard(self._acked[-1], _ACK)]
        else:
            return
        if any(heard):
            del self._acked[:acked]

    async def _extend(self, leases: list[Lease]) -> bool:
        """Extend leases of one consumer, whose last answer stands for all."""
        asked_at = time.monotonic()
        for lease in leases[:-1]:
            await self.send(lease.ack_subject, _EXTEND)
        is_heard = await self._is_heard(leases[-1].ack_subject, _EXTEND)
        if is_heard:
            for lease in leases:
                lease.extended_at = asked_at
        return is_heard

    async def _is_heard(self, subject: str, verb: bytes) -> bool:
        try:
            await self._bus.request(subject, verb, timeout_s=self.lease_s / 3)
        except (BusUnavailable, JetStreamError, NoResponders) as error:
            if not self._is_failing:
                self._is_failing = True
                logger.warning("leases cannot be extended now: %s", error)
            return False
        self._is_failing = False
        return True
