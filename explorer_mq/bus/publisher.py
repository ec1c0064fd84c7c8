"""JetStream publishes: pipelined one by one, or many as one atomic batch."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson

from explorer_mq.bus.connection import Bus, JetStreamError, Msg, Subscription
from explorer_mq_schemas.errors import BusUnavailable, ContractError

WRONG_LAST_SEQUENCE = 10071
"""The server's code for a publish whose expected last sequence does not hold."""

DUPLICATE_IN_BATCH = 10201
"""The server's code for an atomic batch that holds a message id it knows already."""

ATOMIC_LIMIT = 1000
"""Messages per atomic batch (ADR-50)."""

_EXPECT_LAST = "Nats-Expected-Last-Sequence"


@dataclass(frozen=True, slots=True)
class PubAck:
    """The server stored the message (or knew it already: ``duplicate``)."""

    stream: str
    seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class OutMessage:
    """A message to publish."""

    subject: str
    data: bytes
    headers: dict[str, str] | None = None


@dataclass(slots=True)
class _Pending:
    """A publish without an answer; ``is_sent`` unless it waits for a connection."""

    future: asyncio.Future[PubAck]
    size_bytes: int
    timer: asyncio.TimerHandle
    is_sent: bool


class Publisher:
    """Publishes with many acknowledgements in flight: one inbox, integer tokens, a window.

    The window bounds messages and bytes; each publish has its own deadline. One whose connection
    breaks fails at the reconnect, since its acknowledgement would not come any more; one that was
    sent while disconnected goes out then.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        window: int = 512,
        window_bytes: int = 16 << 20,
        timeout_s: float = 10.0,
    ) -> None:
        self._bus = bus
        self._window = window
        self._window_bytes = window_bytes
        self._timeout_s = timeout_s
        self._pending: dict[str, _Pending] = {}
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._count = 0
        self._inbox = bus.new_inbox()
        self._subscription: Subscription | None = None
        self._forget_reconnect: Callable[[], None] | None = None

    async def start(self) -> None:
        """Listen for acknowledgements."""
        self._forget_reconnect = self._bus.on_reconnect(self._hear_reconnect)
        self._subscription = await self._bus.subscribe(f"{self._inbox}.*", self._hear)

    async def close(self) -> None:
        """Stop; publishes in flight end with :class:`BusUnavailable`."""
        if self._forget_reconnect is not None:
            self._forget_reconnect()
            self._forget_reconnect = None
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        for token in list(self._pending):
            self._settle(token, BusUnavailable("the publisher was closed"))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def publish(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> asyncio.Future[PubAck]:
        """Send once there is room; the future brings the acknowledgement.

        It fails with :class:`JetStreamError` when the server refuses and with
        :class:`BusUnavailable` when no answer comes in time (the message may be stored then).

        Raises:
            ContractError: ``data`` exceeds the server's message limit.
        """
        size = len(data)
        if size > self._bus.max_payload_bytes:
            raise ContractError(
                f"message of {size} bytes for {subject} exceeds the server's limit of "
                f"{self._bus.max_payload_bytes} bytes"
            )
        while self._pending and (
            len(self._pending) >= self._window or self._pending_bytes + size > self._window_bytes
        ):
            self._room.clear()
            await self._room.wait()
        self._count += 1
        token = str(self._count)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PubAck] = loop.create_future()
        future.add_done_callback(_look_at)
        late = BusUnavailable(f"no acknowledgement for {subject} within {self._timeout_s:g} s")
        timer = loop.call_later(self._timeout_s, self._settle, token, late)
        self._pending[token] = _Pending(future, size, timer, is_sent=self._bus.is_connected)
        self._pending_bytes += size
        try:
            await self._bus.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
        except BusUnavailable as error:
            self._settle(token, error)
        return future

    async def publish_wait(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> PubAck:
        """Publish and wait for the acknowledgement.

        Raises:
            JetStreamError, BusUnavailable, ContractError: as :meth:`publish`.
        """
        return await (await self.publish(subject, data, headers))

    async def _hear(self, message: Msg) -> None:
        token = message.subject.rsplit(".", 1)[1]
        try:
            self._settle(token, parse_ack(message))
        except (JetStreamError, BusUnavailable) as error:
            self._settle(token, error)

    def _settle(self, token: str, outcome: PubAck | Exception) -> None:
        entry = self._pending.pop(token, None)
        if entry is None:
            return
        entry.timer.cancel()
        self._pending_bytes -= entry.size_bytes
        self._room.set()
        if entry.future.done():
            return
        if isinstance(outcome, PubAck):
            entry.future.set_result(outcome)
        else:
            entry.future.set_exception(outcome)

    def _hear_reconnect(self) -> None:
        for token, entry in list(self._pending.items()):
            if entry.is_sent:
                self._settle(token, BusUnavailable("the connection broke before the answer came"))
            else:
                entry.is_sent = True


async def publish_atomic(
    bus: Bus, messages: Sequence[OutMessage], *, expect_last_seq: int | None = None
) -> PubAck:
    """Store all ``messages`` in order, or none of them.

    ``expect_last_seq`` is checked on the first message; a violation is a
    :class:`JetStreamError` with code 10071.

    Raises:
        ContractError: no message, or more than 1000.
        JetStreamError: the server refused the batch.
        BusUnavailable: no answer; the batch may be stored or not.
    """
    if not 1 <= len(messages) <= ATOMIC_LIMIT:
        raise ContractError(f"an atomic batch holds 1 to {ATOMIC_LIMIT} messages")
    expectation = {} if expect_last_seq is None else {_EXPECT_LAST: str(expect_last_seq)}
    batch_id = secrets.token_hex(12)
    last = len(messages)
    for number, message in enumerate(messages, 1):
        headers = dict(message.headers or {})
        if number == 1:
            headers.update(expectation)
        if last > 1:
            headers["Nats-Batch-Id"] = batch_id
            headers["Nats-Batch-Sequence"] = str(number)
        if number == last:
            if last > 1:
                headers["Nats-Batch-Commit"] = "1"
            return parse_ack(
                await bus.request(
                    message.subject, message.data, headers=headers or None, timeout_s=10.0
                )
            )
        if number == 1:
            opened = await bus.request(message.subject, message.data, headers=headers)
            if opened.data:
                parse_ack(opened)
        else:
            await bus.publish(message.subject, message.data, headers=headers)
    raise AssertionError("unreachable")


def parse_ack(message: Msg) -> PubAck:
    """The acknowledgement in ``message``.

    Raises:
        JetStreamError: it is a refusal.
        BusUnavailable: no stream listens on the subject.
    """
    if not message.data:
        raise BusUnavailable("no stream stores that subject; was the run set up?")
    fields: dict[str, Any] = orjson.loads(message.data)
    error = fields.get("error")
    if error:
        raise JetStreamError(
            f"publish refused: {error.get('description')} ({error.get('err_code')})",
            int(error.get("err_code", 0)),
        )
    return PubAck(fields["stream"], fields["seq"], bool(fields.get("duplicate", False)))


def _look_at(future: asyncio.Future[PubAck]) -> None:
    """Mark the exception as seen: a caller may drop a future it does not care about."""
    if not future.cancelled():
        future.exception()
