"""The task queue: slices out, leases in.

The coordinator publishes with :class:`TaskQueue`; a worker takes leases from :class:`TaskSource`.
A lease lasts ``lease_s`` and is extended by heartbeats until it is settled (:mod:`.leases`); a worker
that dies stops extending, and the server gives the slice to another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from explorer_mq.bus.connection import Bus, JetStreamError, Msg
from explorer_mq.bus.leases import OBJECT_HEADER, Lease, LeaseKeeper
from explorer_mq.bus.objects import put_object
from explorer_mq.bus.publisher import (
    ATOMIC_LIMIT,
    DUPLICATE_IN_BATCH,
    OutMessage,
    Publisher,
    publish_atomic,
)
from explorer_mq.bus.puller import HEARTBEAT_S, Puller
from explorer_mq_schemas.errors import BusUnavailable, ContractError
from explorer_mq_schemas.subjects import Lane
from explorer_mq_schemas.tasks import Slice

logger = logging.getLogger(__name__)

_HEADER_ROOM_BYTES = 4 << 10


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
            try:
                await publish_atomic(self._bus, messages)
            except JetStreamError as error:
                if error.err_code != DUPLICATE_IN_BATCH:
                    raise
                await self._publish_singly(messages)

    async def _publish_singly(self, messages: Sequence[OutMessage]) -> None:
        """After an answer that was lost: an atomic batch takes no repeats, single messages do."""
        acks = [
            await self._publisher.publish(message.subject, message.data, message.headers)
            for message in messages
        ]
        for ack in acks:
            await ack

    async def queued(self) -> dict[str, set[tuple[int, int]]]:
        """Slices that are queued or under a lease: task and slice numbers by batch.

        Subjects that name no slice are left to the worker that will set them aside.
        """
        names = self._bus.names
        found: dict[str, set[tuple[int, int]]] = {}
        offset = 0
        while True:
            info = await self._bus.api(
                f"STREAM.INFO.{names.tasks_stream}",
                {"subjects_filter": names.all_tasks, "offset": offset},
            )
            subjects = info["state"].get("subjects") or {}
            for subject in subjects:
                try:
                    key = names.parse_slice(subject)
                except ContractError:
                    continue
                found.setdefault(key.batch, set()).add((key.task, key.slice))
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
            headers[OBJECT_HEADER] = "1"
            body = ref.encode()
        return OutMessage(names.task(one.task.pool, one.lane, one.key), body, headers)


class TaskSource:
    """Leases for one worker: at most as many as it has free slots, urgent ones first.

    Each free slot is one credit. Pull requests stand on both lanes of every pool; a slice that
    arrives beyond the credits (both lanes answered at once) waits here, its lease extended.
    """

    def __init__(self, bus: Bus, pools: Sequence[str], *, lease_s: float) -> None:
        self._bus = bus
        self._keeper = LeaseKeeper(bus, lease_s=lease_s)
        names = bus.names
        self._pulls = [
            Puller(
                bus,
                names.tasks_stream,
                names.pool_consumer(pool, lane),
                partial(self.receive, lane=lane),
                self.wake,
                # A worker that is stopped must not be given again what it held.
                expires_s=min(20.0, 0.6 * lease_s),
            )
            for lane in Lane
            for pool in pools
        ]
        self._credits = 0
        self._waiting: dict[Lane, deque[Lease]] = {lane: deque() for lane in Lane}
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
            asyncio.create_task(self._keeper.run(), name="task source leases"),
        ]

    async def close(self) -> list[Lease]:
        """Stop pulling; returns the leases nobody took, to be handed back by the caller.

        Taken leases stay with their takers.
        """
        self._forget_reconnect()
        for task in self._tasks[:1]:
            task.cancel()
        for pull in self._pulls:
            await pull.close()
        left = [lease for lane in Lane for lease in self._waiting[lane]]
        for lane in Lane:
            self._waiting[lane].clear()
        return left

    async def stop_extending(self) -> None:
        """End the heartbeats of taken leases; the last step of a worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def held(self) -> int:
        """Leases that are neither settled nor lost."""
        return self._keeper.held

    @property
    def lost(self) -> int:
        """Leases that ran out while they were held here."""
        return self._keeper.lost

    def add_credits(self, count: int) -> None:
        """``count`` more slots are free."""
        self._credits += count
        self.wake()

    async def take(self) -> Lease:
        """The next lease, parsed; uses one credit."""
        while True:
            lease = self._next() if self._credits > 0 else None
            if lease is not None:
                self._credits -= 1
                await lease.open()
                return lease
            self._arrived.clear()
            await self._arrived.wait()

    def receive(self, message: Msg, lane: Lane) -> None:
        """A slice arrived on ``lane``."""
        lease = Lease(self._bus, message, self._keeper)
        self._keeper.hold(lease)
        self._waiting[lane].append(lease)
        self._arrived.set()

    def forget(self, lease: Lease) -> None:
        """No more heartbeats for ``lease``."""
        self._keeper.forget(lease)

    def wake(self, *, renew: bool = False) -> None:
        """Look again at what should be pulled; with ``renew`` all requests are made anew."""
        self._renew = self._renew or renew
        self._wake.set()
        self._arrived.set()

    def _next(self) -> Lease | None:
        """The first lease that waits, urgent ones before others; those lost by now are dropped."""
        for lane in Lane:
            while self._waiting[lane]:
                lease = self._waiting[lane].popleft()
                if not lease.is_lost:
                    return lease
        return None

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
