"""The task queue: slices out, leases in.

The coordinator publishes with :class:`TaskQueue`; a worker takes leases from :class:`TaskSource`.
A lease lasts ``lease_s`` and is extended by heartbeats until it is settled; a worker that dies
stops extending, and the server gives the slice to another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from explorer_mq.bus.connection import Bus, JetStreamError, Msg
from explorer_mq.bus.objects import get_object, put_object
from explorer_mq.bus.publisher import ATOMIC_LIMIT, OutMessage, Publisher, publish_atomic
from explorer_mq.bus.puller import HEARTBEAT_S, Puller
from explorer_mq_schemas.errors import BusUnavailable, ContractError, NotFound
from explorer_mq_schemas.messages import ObjectRef
from explorer_mq_schemas.subjects import Lane, SliceKey
from explorer_mq_schemas.tasks import Slice

logger = logging.getLogger(__name__)

_NS = 1_000_000_000
_HEADER_ROOM_BYTES = 4 << 10
_OBJECT_HEADER = "Exmq-Object"


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Slices not yet delivered, and slices under a lease, over all pools and lanes."""

    pending: int
    leased: int


class TaskQueue:
    """The coordinator's side of the queue."""

    def __init__(self, bus: Bus, publisher: Publisher) -> None:
        self._bus = bus
        self._publisher = publisher

    async def publish(self, slices: Sequence[Slice]) -> None:
        """Queue ``slices`` in order, up to 1,000 as one atomic batch; repeats are dropped.

        Raises:
            BusUnavailable, JetStreamError: not (all) queued; publishing again is safe.
        """
        for start in range(0, len(slices), ATOMIC_LIMIT):
            messages = [await self._message(one) for one in slices[start : start + ATOMIC_LIMIT]]
            await publish_atomic(self._bus, messages)

    async def queued(self, batch: str) -> set[SliceKey]:
        """Slices of ``batch`` that are queued or under a lease."""
        names = self._bus.names
        found: set[SliceKey] = set()
        offset = 0
        while True:
            info = await self._bus.api(
                f"STREAM.INFO.{names.tasks_stream}",
                {"subjects_filter": names.batch_tasks(batch), "offset": offset},
            )
            subjects = info["state"].get("subjects") or {}
            found.update(names.parse_slice(subject) for subject in subjects)
            offset += len(subjects)
            if not subjects or offset >= int(info.get("total", 0)):
                return found

    async def purge(self, batch: str) -> int:
        """Remove every slice of ``batch``, also leased ones; returns how many."""
        names = self._bus.names
        reply = await self._bus.api(
            f"STREAM.PURGE.{names.tasks_stream}", {"filter": names.batch_tasks(batch)}
        )
        return int(reply.get("purged", 0))

    async def depth(self) -> QueueDepth:
        """How much work waits and how much is leased."""
        names = self._bus.names
        info = await self._bus.api(f"STREAM.INFO.{names.tasks_stream}")
        total = int(info["state"]["messages"])
        listed = await self._bus.api(f"CONSUMER.LIST.{names.tasks_stream}")
        leased = sum(int(one.get("num_ack_pending", 0)) for one in listed.get("consumers") or [])
        return QueueDepth(max(0, total - leased), leased)

    async def _message(self, one: Slice) -> OutMessage:
        names = self._bus.names
        body = one.encode()
        headers = {"Nats-Msg-Id": str(one.key)}
        if len(body) + _HEADER_ROOM_BYTES > self._bus.max_payload_bytes:
            prefix = names.object(one.batch, "task", str(one.task_number), str(one.number))
            ref = await put_object(self._publisher, prefix, body)
            headers[_OBJECT_HEADER] = "1"
            body = ref.encode()
        return OutMessage(names.task(one.task.pool, one.lane, one.key), body, headers)


class Lease:
    """One delivered slice until it is settled.

    ``slice`` is None for a message that breaks the contract; ``error`` then says why. ``delivery``
    counts how often the server has given this slice out.
    """

    def __init__(self, bus: Bus, message: Msg, source: TaskSource) -> None:
        self._bus = bus
        self._source = source
        self._reply = message.reply
        self.subject = message.subject
        self.raw = message.data
        self.is_object = bool(message.headers and _OBJECT_HEADER in message.headers)
        self.delivery = int(message.reply.split(".")[4])
        self.slice: Slice | None = None
        self.key: SliceKey | None = None
        self.error: ContractError | None = None

    async def open(self) -> None:
        """Parse the message; never raises for what it holds."""
        try:
            self.key = self._bus.names.parse_slice(self.subject)
            body: bytes | bytearray = self.raw
            if self.is_object:
                ref = ObjectRef.decode(self.raw)
                body = await get_object(self._bus, self._bus.names.results_stream, ref)
            self.slice = Slice.decode(body)
            if self.slice.key != self.key:
                self.slice = None
                raise ContractError(f"slice on {self.subject} names another: {self.key}")
        except NotFound as error:
            self.error = ContractError(str(error))
        except ContractError as error:
            self.error = error

    async def ack(self) -> None:
        """Done: the slice leaves the queue. Only after its result is stored."""
        await self._settle(b"+ACK")

    async def hand_back(self, delay_s: float = 0.0) -> None:
        """Let another worker have it, ``delay_s`` from now."""
        body = b"-NAK"
        if delay_s > 0:
            body += b" " + orjson.dumps({"delay": int(delay_s * _NS)})
        await self._settle(body)

    async def terminate(self, reason: str) -> None:
        """Remove it without a result; the reason shows in the server's advisory."""
        await self._settle(b"+TERM " + reason.encode()[:200])

    async def extend(self) -> None:
        """Start the lease anew."""
        await self._bus.publish(self._reply, b"+WPI")

    async def _settle(self, verb: bytes) -> None:
        self._source.forget(self)
        await self._bus.publish(self._reply, verb)


class TaskSource:
    """Leases for one worker: at most as many as it has free slots, urgent ones first.

    Each free slot is one credit. Pull requests stand on both lanes of every pool; a slice that
    arrives beyond the credits (both lanes answered at once) waits here, its lease extended.
    """

    def __init__(self, bus: Bus, pools: Sequence[str], *, lease_s: float) -> None:
        self._bus = bus
        self._lease_s = lease_s
        names = bus.names
        self._pulls = [
            Puller(
                bus,
                names.tasks_stream,
                names.pool_consumer(pool, lane),
                partial(self.receive, lane=lane),
                self.wake,
            )
            for lane in Lane
            for pool in pools
        ]
        self._credits = 0
        self._waiting: dict[Lane, deque[Lease]] = {lane: deque() for lane in Lane}
        self._held: set[Lease] = set()
        self._arrived = asyncio.Event()
        self._wake = asyncio.Event()
        self._renew = False
        self._tasks: list[asyncio.Task[None]] = []
        self._forget_reconnect = bus.on_reconnect(lambda: self.wake(renew=True))

    async def start(self) -> None:
        """Begin; nothing is pulled before the first credit."""
        for pull in self._pulls:
            await pull.open()
        self._tasks = [
            asyncio.create_task(self._pull_loop(), name="task source pulls"),
            asyncio.create_task(self._extend_loop(), name="task source leases"),
        ]

    async def close(self) -> None:
        """Stop pulling and hand back what was not taken; taken leases stay with their takers."""
        self._forget_reconnect()
        for task in self._tasks[:1]:
            task.cancel()
        for pull in self._pulls:
            await pull.close()
        for lane in Lane:
            while self._waiting[lane]:
                await self._waiting[lane].popleft().hand_back()

    async def stop_extending(self) -> None:
        """End the heartbeats of taken leases; the last step of a worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def held(self) -> int:
        """Leases that are not settled."""
        return len(self._held)

    def add_credits(self, count: int) -> None:
        """``count`` more slots are free."""
        self._credits += count
        self.wake()

    async def take(self) -> Lease:
        """The next lease, parsed; uses one credit."""
        while True:
            for lane in Lane:
                if self._credits > 0 and self._waiting[lane]:
                    self._credits -= 1
                    lease = self._waiting[lane].popleft()
                    await lease.open()
                    return lease
            self._arrived.clear()
            await self._arrived.wait()

    def receive(self, message: Msg, lane: Lane) -> None:
        """A slice arrived on ``lane``."""
        lease = Lease(self._bus, message, self)
        self._held.add(lease)
        self._waiting[lane].append(lease)
        self._arrived.set()

    def forget(self, lease: Lease) -> None:
        """``lease`` is settled: no more heartbeats."""
        self._held.discard(lease)

    def wake(self, *, renew: bool = False) -> None:
        """Look again at what should be pulled; with ``renew`` all requests are made anew."""
        self._renew = self._renew or renew
        self._wake.set()
        self._arrived.set()

    async def _pull_loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self._renew:
                    self._renew = False
                    for pull in self._pulls:
                        await pull.open()
                await self._refill()
            except BusUnavailable as error:
                logger.warning("pulling slices paused: %s", error)
            try:
                async with asyncio.timeout(HEARTBEAT_S * 2):
                    await self._wake.wait()
            except TimeoutError:
                self._renew = any(pull.is_silent for pull in self._pulls)

    async def _refill(self) -> None:
        """Ask every lane for all free slots.

        The lanes' requests overlap, so that an urgent slice never waits behind an empty normal lane,
        at the price of a few slices waiting here.
        """
        waiting = sum(len(queue) for queue in self._waiting.values())
        free = self._credits - waiting
        for pull in self._pulls:
            await pull.ask(free - pull.outstanding)

    async def _extend_loop(self) -> None:
        """One sweep for all leases, three times per lease time."""
        never = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    await never.wait()
            except TimeoutError:
                pass
            for lease in list(self._held):
                try:
                    await lease.extend()
                except (BusUnavailable, JetStreamError) as error:
                    logger.warning("lease of %s not extended: %s", lease.subject, error)
