"""The result log: one accepted result per slice, attempt records, dead letters."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from explorer_mq.bus.connection import Bus, JetStreamError
from explorer_mq.bus.follower import Follower, Received
from explorer_mq.bus.objects import Buffer, get_object, put_object
from explorer_mq.bus.publisher import WRONG_LAST_SEQUENCE, Publisher
from explorer_mq_schemas.errors import ContractError, NotFound
from explorer_mq_schemas.results import (
    ATTEMPT_HEADER,
    RESULT_HEADER,
    Attempt,
    DeadLetter,
    Result,
)
from explorer_mq_schemas.subjects import RunNames, SliceKey

_FIRST_ONLY = {"Nats-Expected-Last-Subject-Sequence": "0"}
_MESSAGE_ID = "Nats-Msg-Id"
_HEADER_ROOM_BYTES = 64 << 10


class ResultLog:
    """Publishes and reads results of one run."""

    def __init__(self, bus: Bus, publisher: Publisher) -> None:
        self._bus = bus
        self._publisher = publisher

    async def publish(self, key: SliceKey, result: Result, payload: Buffer) -> bool:
        """Store the slice's result; False when another attempt was first.

        A payload over the message limit is stored as an object before. Repeating is safe: the
        server accepts one message per subject, ever, and chunks are named for what they hold.

        Raises:
            BusUnavailable: no acknowledgement; the result may be stored.
            JetStreamError: the server refused it for another reason, e.g. a full disk.
        """
        names = self._bus.names
        if len(payload) + _HEADER_ROOM_BYTES > self._bus.max_payload_bytes:
            upload = hashlib.sha256(payload).hexdigest()[:32]
            prefix = names.object(key.batch, "result", str(key.task), str(key.slice), upload)
            ref = await put_object(self._publisher, prefix, payload)
            result = result.model_copy(update={"object": ref})
            payload = b""
        headers = {**_FIRST_ONLY, RESULT_HEADER: result.to_header()}
        try:
            await self._publisher.publish_wait(names.result(key), bytes(payload), headers)
        except JetStreamError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return await self._is_mine(key, result)
            raise
        return True

    async def publish_attempt(self, key: SliceKey, attempt: Attempt) -> None:
        """Record an attempt that ended without a result; a repeat is dropped.

        Raises:
            BusUnavailable, JetStreamError: not recorded, or without acknowledgement.
        """
        name = f"{key}/{attempt.worker}/{attempt.attempt}/{attempt.end}/{attempt.excused}"
        headers = {_MESSAGE_ID: f"attempt/{name}", ATTEMPT_HEADER: attempt.to_header()}
        await self._publisher.publish_wait(self._bus.names.attempt(key), b"", headers)

    async def publish_dead(self, key: SliceKey | None, letter: DeadLetter) -> None:
        """Set a slice, or a message that names none, aside; a repeat is dropped.

        Raises:
            BusUnavailable, JetStreamError: not stored, or without acknowledgement.
        """
        names = self._bus.names
        subject = names.dead(key) if key else f"{names.root}.dead.malformed"
        body = letter.encode()
        headers = {_MESSAGE_ID: hashlib.sha256(body).hexdigest()}
        await self._publisher.publish_wait(subject, body, headers)

    async def attempts(self, key: SliceKey) -> tuple[Attempt, ...]:
        """Recorded attempts of a slice, oldest first."""
        names = self._bus.names
        filters = [names.attempt(key)]
        async with Follower(self._bus, names.results_stream, filters, headers_only=True) as log:
            found = [self.parse(message)[1] for message in await log.catch_up()]
        return tuple(attempt for attempt in found if isinstance(attempt, Attempt))

    def follow(self, start_seq: int) -> Follower:
        """Results and attempts from ``start_seq`` on, without payloads."""
        names = self._bus.names
        return Follower(
            self._bus,
            names.results_stream,
            [names.all_results, names.all_attempts],
            start_seq=start_seq,
            headers_only=True,
        )

    def parse(self, message: Received) -> tuple[SliceKey, Result | Attempt]:
        """What a message of :meth:`follow` says.

        Raises:
            ContractError: it is neither a result nor an attempt record of this run.
        """
        return parse_report(self._bus.names, message)

    async def last_seq(self) -> int:
        """Sequence of the stream's newest message."""
        info = await self._bus.api(f"STREAM.INFO.{self._bus.names.results_stream}")
        return int(info["state"]["last_seq"])

    async def delete(self, seq: int) -> None:
        """Remove one result; one that is gone already is fine."""
        try:
            await self._bus.api(
                f"STREAM.MSG.DELETE.{self._bus.names.results_stream}",
                {"seq": seq, "no_erase": True},
            )
        except (NotFound, JetStreamError) as error:
            if isinstance(error, JetStreamError) and error.err_code not in (10057, 10043):
                raise

    async def payload(self, seq: int) -> bytes | bytearray:
        """Packed experiences of the result at ``seq``, also those stored as an object.

        Raises:
            NotFound: the result is gone.
        """
        stream = self._bus.names.results_stream
        found: dict[str, Any] = await self._bus.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})
        message = found["message"]
        header = base64.b64decode(message.get("hdrs", "")).decode()
        for line in header.split("\r\n"):
            name, _, value = line.partition(": ")
            if name == RESULT_HEADER:
                ref = Result.decode(value).object
                if ref is not None:
                    return await get_object(self._bus, stream, ref)
        return base64.b64decode(message.get("data", ""))

    async def _is_mine(self, key: SliceKey, result: Result) -> bool:
        """The slice has a result: ours, whose acknowledgement was lost, or another attempt's."""
        names = self._bus.names
        filters = [names.result(key)]
        async with Follower(self._bus, names.results_stream, filters, headers_only=True) as log:
            for message in await log.catch_up():
                stored = self.parse(message)[1]
                return (
                    isinstance(stored, Result)
                    and stored.worker == result.worker
                    and stored.attempt == result.attempt
                    and stored.seconds == result.seconds
                )
        return False


def parse_report(names: RunNames, message: Received) -> tuple[SliceKey, Result | Attempt]:
    """Slice and report of a message of the result stream.

    Raises:
        ContractError: it is neither a result nor an attempt record of this run.
    """
    key = names.parse_slice(message.subject)
    headers = message.headers or {}
    if RESULT_HEADER in headers:
        return key, Result.decode(headers[RESULT_HEADER])
    if ATTEMPT_HEADER in headers:
        return key, Attempt.decode(headers[ATTEMPT_HEADER])
    raise ContractError(f"message on {message.subject} has neither result nor attempt header")
