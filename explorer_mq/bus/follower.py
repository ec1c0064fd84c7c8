"""Reading a stream in order, without gaps or repeats, across reconnects and server restarts."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson

from explorer_mq.bus.connection import Bus, JetStreamError, Msg, Subscription
from explorer_mq_schemas.errors import BusUnavailable, NotFound

logger = logging.getLogger(__name__)

_NS = 1_000_000_000
_HEARTBEAT_S = 2.0
_SILENT_S = 5.0
_USED_UP = ("Batch Completed", "Message Size Exceeds MaxBytes")


@dataclass(frozen=True, slots=True)
class Received:
    """A stored message; ``time_s`` is the stream's Unix time, ``pending`` how many follow."""

    subject: str
    data: bytes
    headers: Mapping[str, str] | None
    seq: int
    time_s: float
    pending: int


class Follower:
    """An ordered read of ``stream``, starting at ``start_seq`` or with the last of each subject.

    It uses ephemeral pull consumers without acknowledgements. When one is lost (reconnect, server
    restart, silence beyond its heartbeats) the next starts right after the last message read.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        filters: Sequence[str],
        *,
        start_seq: int = 1,
        last_per_subject: bool = False,
        headers_only: bool = False,
        batch: int = 500,
        max_bytes: int = 16 << 20,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._filters = list(filters)
        self._last_per_subject = last_per_subject
        self._headers_only = headers_only
        self._batch = batch
        self._max_bytes = max_bytes
        self.last_seq = start_seq - 1
        self.backlog = 0
        self._buffer: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._consumer = ""
        self._generation = 0
        self._delivered = 0
        self._asked = 0
        self._heard_at = 0.0
        self._broken = False
        self._subscription: Subscription | None = None
        self._forget_reconnect = bus.on_reconnect(self._break)

    async def start(self) -> None:
        """Create the first consumer; ``backlog`` then tells how many messages wait already."""
        await self._renew()

    async def close(self) -> None:
        """Stop reading and remove the consumer if the connection still stands."""
        self._forget_reconnect()
        await self._drop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def next_batch(self) -> list[Received]:
        """Wait for at least one message and return all that have arrived."""
        while not self._buffer:
            if self._broken:
                await self._recover()
            self._arrived.clear()
            await self._ask()
            try:
                async with asyncio.timeout(_SILENT_S):
                    await self._arrived.wait()
            except TimeoutError:
                silent_s = asyncio.get_running_loop().time() - self._heard_at
                self._broken = self._broken or silent_s >= _SILENT_S
        found = list(self._buffer)
        self._buffer.clear()
        await self._ask()
        return found

    async def catch_up(self) -> list[Received]:
        """Everything that was stored when the follower started."""
        found: list[Received] = []
        wanted = self.backlog  # a renewed consumer counts anew
        while len(found) < wanted and (not found or found[-1].pending):
            found.extend(await self.next_batch())
        return found

    async def _recover(self) -> None:
        pause_s = 0.1
        while self._broken:
            try:
                await self._renew()
            except (BusUnavailable, JetStreamError, NotFound) as error:
                logger.warning("stream=%s cannot be followed now: %s", self._stream, error)
                retry = asyncio.Event()
                forget = self._bus.on_reconnect(retry.set)
                try:
                    async with asyncio.timeout(pause_s):
                        await retry.wait()
                except TimeoutError:
                    pause_s = min(2.0, pause_s * 2)
                finally:
                    forget()

    async def _renew(self) -> None:
        await self._drop()
        self._generation += 1
        self._delivered = 0
        self._asked = 0
        first = self._last_per_subject and self.last_seq <= 0
        start: dict[str, Any] = (
            {"deliver_policy": "last_per_subject"}
            if first
            else {"deliver_policy": "by_start_sequence", "opt_start_seq": self.last_seq + 1}
        )
        created = await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}",
            {
                "stream_name": self._stream,
                "config": {
                    "filter_subjects": self._filters,
                    "ack_policy": "none",
                    "mem_storage": True,
                    "num_replicas": 1,
                    "inactive_threshold": 30 * _NS,
                    "headers_only": self._headers_only,
                    "replay_policy": "instant",
                    **start,
                },
                "action": "",
            },
        )
        self._consumer = created["name"]
        self.backlog = int(created.get("num_pending", 0))
        inbox = self._bus.new_inbox()
        generation = self._generation

        async def hear(message: Msg) -> None:
            self._hear(message, generation)

        self._subscription = await self._bus.subscribe(inbox, hear)
        self._inbox = inbox
        self._broken = False
        self._heard_at = asyncio.get_running_loop().time()
        await self._ask()

    async def _drop(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
            if self._bus.is_connected:
                await self._bus.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}")

    async def _ask(self) -> None:
        """Keep a pull request outstanding; the next one is sent when half is used."""
        if self._broken or self._asked > self._batch // 2:
            return
        more = self._batch - self._asked
        self._asked += more
        body = {
            "batch": more,
            "max_bytes": self._max_bytes,
            "expires": 30 * _NS,
            "idle_heartbeat": int(_HEARTBEAT_S * _NS),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._bus.publish(subject, orjson.dumps(body), reply=self._inbox)

    def _break(self) -> None:
        self._broken = True
        self._arrived.set()

    def _hear(self, message: Msg, generation: int) -> None:
        if generation != self._generation:
            return
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers
        if headers and "Status" in headers and not message.reply.startswith("$JS.ACK"):
            self._hear_status(headers)
            return
        tokens = message.reply.split(".")
        seq, delivered = int(tokens[5]), int(tokens[6])
        self._asked -= 1
        if delivered != self._delivered + 1:
            self._break()
            return
        self._delivered = delivered
        self.last_seq = seq
        self._buffer.append(
            Received(
                message.subject, message.data, headers, seq, int(tokens[7]) / _NS, int(tokens[8])
            )
        )
        self._arrived.set()

    def _hear_status(self, headers: Mapping[str, str]) -> None:
        """Any status but a heartbeat ends a request; unless it was just used up, start afresh."""
        status = headers["Status"]
        if status == "100":
            return
        left = int(headers.get("Nats-Pending-Messages", self._asked))
        self._asked = max(0, self._asked - left)
        if status not in ("404", "408") and headers.get("Description") not in _USED_UP:
            self._broken = True
        self._arrived.set()
