"""Credit pull on one durable consumer, with the fields nats-py's ``fetch`` cannot send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson

from explorer_mq.bus.connection import Bus, Msg, Subscription

HEARTBEAT_S = 2.0
_NS = 1_000_000_000
_EXPIRES_S = 20.0
_MAX_BYTES = 16 << 20


class Puller:
    """Outstanding pull requests of one client on one consumer.

    ``receive`` gets each message; ``wake(renew=...)`` is called when requests ended, with ``renew``
    when the consumer is gone and everything must be asked anew.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        consumer: str,
        receive: Callable[[Msg], None],
        wake: Callable[..., None],
        *,
        expires_s: float = _EXPIRES_S,
    ) -> None:
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._receive = receive
        self._wake = wake
        self._expires_s = expires_s
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._heard_at = 0.0
        self.outstanding = 0

    @property
    def is_silent(self) -> bool:
        """Requests are outstanding, yet not even heartbeats arrive."""
        silence_s = asyncio.get_running_loop().time() - self._heard_at
        return self.outstanding > 0 and silence_s > 3 * HEARTBEAT_S

    async def open(self) -> None:
        """Listen on a fresh inbox; requests made before are void."""
        await self.close()
        self.outstanding = 0
        inbox = self._inbox = self._bus.new_inbox()

        async def hear(message: Msg) -> None:
            if inbox == self._inbox:
                self._hear(message)

        self._subscription = await self._bus.subscribe(inbox, hear)

    async def close(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    async def ask(self, count: int) -> None:
        """Pull up to ``count`` more messages."""
        if count <= 0:
            return
        self.outstanding += count
        self._heard_at = asyncio.get_running_loop().time()
        body = {
            "batch": count,
            "expires": int(self._expires_s * _NS),
            "idle_heartbeat": int(min(HEARTBEAT_S, self._expires_s / 3) * _NS),
            "max_bytes": _MAX_BYTES,
        }
        await self._bus.publish(self._subject, orjson.dumps(body), reply=self._inbox)

    def _hear(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers
        if headers and "Status" in headers and not message.reply.startswith("$JS.ACK"):
            status = headers["Status"]
            if status != "100":
                ended = int(headers.get("Nats-Pending-Messages", self.outstanding))
                self.outstanding = max(0, self.outstanding - ended)
                gone = status == "409" and "Deleted" in headers.get("Description", "")
                self._wake(renew=gone or status == "503")
            return
        self.outstanding = max(0, self.outstanding - 1)
        self._receive(message)
