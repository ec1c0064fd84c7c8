"""One connection to NATS, with errors that say what happened.

nats-py reports a denied call as a time-out and tells the reason only to a callback; this layer
remembers that reason and raises it in place of the time-out. It closes in well under a second
(nats-py's ``drain`` can take 30) and never calls ``flush``, whose time-out kills the reader.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import nats
import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from explorer_mq_schemas.errors import (
    BusUnavailable,
    ConfigError,
    NotFound,
    PermissionRefused,
    TransientError,
)
from explorer_mq_schemas.subjects import RunNames

__all__ = ["Bus", "BusOptions", "JetStreamError", "Msg", "NoResponders", "Subscription"]

logger = logging.getLogger(__name__)

_NOT_FOUND = 404
_USERINFO = re.compile(r"//[^/@]*@")
_DENIED = re.compile(
    r"permissions violation for (?:publish|subscription) to \"([^\"]+)\"", re.IGNORECASE
)


class JetStreamError(TransientError):
    """JetStream refused a call; ``err_code`` is the server's number, e.g. 10071."""

    def __init__(self, message: str, err_code: int = 0) -> None:
        super().__init__(message)
        self.err_code = err_code


class NoResponders(TransientError):
    """Nobody listens on the subject of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusOptions:
    """Where and as whom to connect; ``url`` may be a comma separated list of servers."""

    url: str = "nats://127.0.0.1:4222"
    name: str = "explorer-mq"
    nkey_seed_file: Path | None = None
    credentials_file: Path | None = None
    tls_ca_file: Path | None = None
    inbox_prefix: str = "_INBOX"
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 5.0

    @property
    def shown_url(self) -> str:
        """The url without user and password."""
        return _USERINFO.sub("//", self.url)


class Subscription:
    """A callback bound to a subject until :meth:`unsubscribe`."""

    def __init__(self, inner: NatsSubscription) -> None:
        self._inner = inner

    async def unsubscribe(self) -> None:
        """Stop; safe after the connection closed."""
        try:
            await self._inner.unsubscribe()
        except (nats.errors.ConnectionClosedError, nats.errors.BadSubscriptionError) as error:
            logger.debug("unsubscribe after close: %s", error)


class Bus:
    """A connection bound to one run; made by :meth:`connect`."""

    def __init__(self, run: str, options: BusOptions) -> None:
        self.names = RunNames(run)
        self.options = options
        self._client = Client()
        self._denied: dict[str, str] = {}
        self._reconnect: list[Callable[[], None]] = []
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._opened = False
        self._closing = False
        self._last_error = ""
        self._refused = False
        self._clock_offset_s = time.time() - time.monotonic()

    @classmethod
    async def connect(cls, run: str, options: BusOptions) -> Self:
        """Connect within ``connect_timeout_s`` and learn the server's clock.

        Raises:
            BusUnavailable: no server answers; the message names the url.
            PermissionRefused: the server does not accept the credentials.
            ConfigError: a credentials file is missing, or the server has no JetStream.
        """
        bus = cls(run, options)
        await bus._open()
        try:
            await bus._learn_clock()
        except BaseException:
            await bus.close()
            raise
        return bus

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def max_payload_bytes(self) -> int:
        """Largest message the server takes, headers included."""
        return self._client.max_payload

    @property
    def is_connected(self) -> bool:
        """The socket is up at this moment."""
        return self._client.is_connected

    def now(self) -> float:
        """Unix time in seconds on the server's clock, never going backwards."""
        return time.monotonic() + self._clock_offset_s

    def new_inbox(self) -> str:
        """A fresh reply subject."""
        return self._client.new_inbox()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every reconnect; returns the remover."""
        self._reconnect.append(callback)
        return lambda: self._reconnect.remove(callback)

    async def wait_reconnect(self, seconds: float) -> None:
        """Wait for the next reconnect, at most ``seconds``: a pause that an outage's end cuts short."""
        back = asyncio.Event()
        forget = self.on_reconnect(back.set)
        try:
            async with asyncio.timeout(seconds):
                await back.wait()
        except TimeoutError:
            return
        finally:
            forget()

    async def wait_closed(self) -> str:
        """Wait until the connection is lost for good, and return why."""
        return await asyncio.shield(self._closed)

    async def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a core message; nobody confirms it.

        Raises:
            BusUnavailable: the connection is closed, or its buffer is full while disconnected.
        """
        try:
            await self._client.publish(subject, data, reply=reply, headers=headers)
        except (
            nats.errors.ConnectionClosedError,
            nats.errors.ConnectionDrainingError,
            nats.errors.OutboundBufferLimitError,
        ) as error:
            raise BusUnavailable(f"cannot publish to {subject}: {error}") from error

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Msg:
        """Send and wait for one reply.

        Raises:
            NoResponders: nobody listens on ``subject``.
            PermissionRefused: the server denied it.
            BusUnavailable: no reply in time, or no connection.
        """
        limit_s = timeout_s or self.options.request_timeout_s
        cancels = _cancels()
        try:
            reply = await self._client.request(subject, data, timeout=limit_s, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise NoResponders(f"nobody answers on {subject}") from error
        except nats.errors.TimeoutError as error:
            reason = self._denied.pop(subject.lower(), "")
            if reason:
                raise PermissionRefused(f"{self.options.name}: {reason}") from error
            raise BusUnavailable(f"no reply on {subject} within {limit_s:g} s") from error
        except (
            nats.errors.ConnectionClosedError,
            nats.errors.ConnectionDrainingError,
            nats.errors.OutboundBufferLimitError,
        ) as error:
            raise BusUnavailable(f"cannot ask {subject}: {error}") from error
        if _cancels() > cancels:
            # wait_for inside nats-py loses a cancel that comes with the reply (until Python 3.12).
            raise asyncio.CancelledError
        return reply

    async def api(
        self,
        call: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """A JetStream API call, e.g. ``api("STREAM.INFO.NAME")``.

        Raises:
            NotFound: no such stream, consumer or message.
            JetStreamError: the server refused; carries its ``err_code``.
        """
        payload = b"" if body is None else orjson.dumps(body)
        reply = await self.request(f"$JS.API.{call}", payload, timeout_s=timeout_s)
        fields: dict[str, Any] = orjson.loads(reply.data)
        error = fields.get("error")
        if error:
            text = f"{call}: {error.get('description')} ({error.get('err_code')})"
            if error.get("code") == _NOT_FOUND:
                raise NotFound(text)
            raise JetStreamError(text, int(error.get("err_code", 0)))
        return fields

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Call back for each message, one at a time."""
        return Subscription(
            await self._client.subscribe(
                subject,
                queue=queue,
                cb=callback,
                pending_msgs_limit=-1,
                pending_bytes_limit=-1,
            )
        )

    @property
    def client(self) -> Client:
        """The nats-py client, for the bus's own modules."""
        return self._client

    async def close(self) -> None:
        """Close at once; idempotent."""
        if not self._closing:
            self._closing = True
            await self._client.close()

    async def _open(self) -> None:
        options = self.options
        for path in (options.nkey_seed_file, options.credentials_file, options.tls_ca_file):
            if path is not None and not path.is_file():
                raise ConfigError(f"credentials file {path} does not exist")
        try:
            async with asyncio.timeout(options.connect_timeout_s):
                await self._client.connect(**self._client_options())
            self._opened = True
        except nats.errors.AuthorizationError as error:
            await self.close()
            raise PermissionRefused(
                f"the NATS server at {options.shown_url} refused the credentials; check "
                "nats.nkey_seed_file or nats.credentials_file"
            ) from error
        except (OSError, TimeoutError, nats.errors.Error) as error:
            await self.close()
            if self._refused:
                raise PermissionRefused(
                    f"the NATS server at {options.shown_url} refused the credentials; check "
                    "nats.nkey_seed_file or nats.credentials_file"
                ) from error
            raise BusUnavailable(
                f"no NATS server answers at {options.shown_url} within "
                f"{options.connect_timeout_s:g} s; start one with `explorer-mq nats` or set nats.url"
            ) from error

    def _client_options(self) -> dict[str, Any]:
        options = self.options
        extra: dict[str, Any] = {}
        if options.nkey_seed_file is not None:
            extra["nkeys_seed"] = str(options.nkey_seed_file)
        if options.credentials_file is not None:
            extra["user_credentials"] = str(options.credentials_file)
        if options.tls_ca_file is not None:
            import ssl

            extra["tls"] = ssl.create_default_context(cafile=str(options.tls_ca_file))
        return {
            "servers": [url.strip() for url in options.url.split(",")],
            "name": options.name,
            "inbox_prefix": options.inbox_prefix.encode(),
            "connect_timeout": options.connect_timeout_s,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.25,
            "ping_interval": 5,
            "max_outstanding_pings": 2,
            "pending_size": 16 << 20,
            "error_cb": self._hear_error,
            "disconnected_cb": self._hear_disconnect,
            "reconnected_cb": self._hear_reconnect,
            "closed_cb": self._hear_close,
            **extra,
        }

    async def _learn_clock(self) -> None:
        """JetStream replies carry the server's time; half a round trip is the error."""
        try:
            await self.api("INFO")
        except NoResponders as error:
            raise ConfigError(
                f"the NATS server at {self.options.shown_url} has JetStream switched off; "
                "start it with `jetstream {}` in its configuration"
            ) from error
        started = time.monotonic()
        try:
            listed = await self.api("STREAM.LIST", {"subject": self.names.journal})
        except (NotFound, JetStreamError, PermissionRefused, BusUnavailable) as error:
            logger.debug("the server's clock stays unknown: %s", error)
            return
        stamp = listed.get("ts")
        if stamp:
            middle = (started + time.monotonic()) / 2
            self._clock_offset_s = _unix_seconds(stamp) - middle

    async def _hear_error(self, error: Exception) -> None:
        self._last_error = str(error)
        self._refused = self._refused or "authorization" in self._last_error.lower()
        denied = _DENIED.search(str(error))
        if denied:
            self._denied[denied.group(1).lower()] = str(error)
        if self._opened and not self._closing:
            logger.warning("nats url=%s: %s", self.options.shown_url, error or type(error).__name__)

    async def _hear_disconnect(self) -> None:
        if not self._closing:
            logger.warning("nats url=%s disconnected, reconnecting", self.options.shown_url)

    async def _hear_reconnect(self) -> None:
        logger.info("nats url=%s reconnected", self.options.shown_url)
        for callback in list(self._reconnect):
            callback()

    async def _hear_close(self) -> None:
        if not self._closed.done():
            self._closed.set_result(self._last_error or "connection closed")


def _cancels() -> int:
    """How often somebody asked the current task to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _unix_seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp[:26].rstrip("Z") + "Z").timestamp()
