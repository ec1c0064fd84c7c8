"""The run's key-value state (policy, time-outs, leader, ...) over plain JetStream calls."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from explorer_mq.bus.connection import Bus, JetStreamError
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.publisher import WRONG_LAST_SEQUENCE, parse_ack
from explorer_mq_schemas.errors import NotFound


@dataclass(frozen=True, slots=True)
class Value:
    """What a key holds, and its revision: it changes with every write."""

    data: bytes
    revision: int


class RunState:
    """Keys of the bucket ``EXMQ_<run>_STATE``; an empty value counts as absent."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def get(self, key: str) -> bytes | None:
        """The value of ``key``."""
        found = await self.read(key)
        return found.data or None

    async def read(self, key: str) -> Value:
        """The value of ``key`` with its revision; empty and revision 0 when it is absent."""
        names = self._bus.names
        try:
            found = await self._bus.api(
                f"STREAM.MSG.GET.{names.state_stream}", {"last_by_subj": names.state(key)}
            )
        except NotFound:
            return Value(b"", 0)
        message = found["message"]
        return Value(base64.b64decode(message.get("data", "")), int(message["seq"]))

    async def put(self, key: str, value: bytes) -> int:
        """Set ``key``; returns its revision.

        Raises:
            JetStreamError: the server refused.
        """
        subject = self._bus.names.state(key)
        return parse_ack(await self._bus.request(subject, value)).seq

    async def swap(
        self, key: str, value: bytes, *, revision: int, ttl_s: int | None = None
    ) -> int | None:
        """Set ``key`` if it still has ``revision`` (0: is absent); None if it has another.

        Args:
            key: which.
            value: its new value.
            revision: the one it must have now.
            ttl_s: whole seconds after which the server removes it, unless it is set again.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{ttl_s}s"
        subject = self._bus.names.state(key)
        try:
            return parse_ack(await self._bus.request(subject, value, headers=headers)).seq
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return None

    async def remove(self, *parts: str) -> None:
        """Remove a key, or all keys below it: ``remove("snapshot", "7")``."""
        names = self._bus.names
        subject = names.state(*parts)
        for filter_ in (subject, f"{subject}.>"):
            await self._bus.api(f"STREAM.PURGE.{names.state_stream}", {"filter": filter_})

    def follow(self, *keys: str) -> Follower:
        """Current values of ``keys``, then every change."""
        names = self._bus.names
        return Follower(
            self._bus,
            names.state_stream,
            [names.state(key) for key in keys],
            last_per_subject=True,
        )
