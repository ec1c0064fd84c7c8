"""The run's key-value state (policy, members, ...) over plain JetStream calls."""

from __future__ import annotations

import base64

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.publisher import parse_ack
from explorer_mq_schemas.errors import NotFound


class RunState:
    """Keys of the bucket ``EXMQ_<run>_STATE``; an empty value counts as absent."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def get(self, key: str) -> bytes | None:
        """The value of ``key``."""
        names = self._bus.names
        try:
            found = await self._bus.api(
                f"STREAM.MSG.GET.{names.state_stream}", {"last_by_subj": names.state(key)}
            )
        except NotFound:
            return None
        return base64.b64decode(found["message"].get("data", "")) or None

    async def put(self, key: str, value: bytes) -> int:
        """Set ``key``; returns its revision.

        Raises:
            JetStreamError: the server refused.
        """
        subject = self._bus.names.state(key)
        return parse_ack(await self._bus.request(subject, value)).seq

    def follow(self, *keys: str) -> Follower:
        """Current values of ``keys``, then every change."""
        names = self._bus.names
        return Follower(
            self._bus,
            names.state_stream,
            [names.state(key) for key in keys],
            last_per_subject=True,
        )
