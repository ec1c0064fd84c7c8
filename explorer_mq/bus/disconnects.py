"""Hearing at once that a client's connection to the server has ended.

The server tells its system account; a configuration may pass the events on to ours (the embedded
server and ``deploy/nats-server.conf`` do). Where it does not, nothing arrives and the leases, which
run out by themselves, are what remains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import orjson

from explorer_mq.bus.connection import Bus, Msg, Subscription
from explorer_mq_schemas.subjects import DISCONNECTS

logger = logging.getLogger(__name__)


async def watch_disconnects(bus: Bus, hear: Callable[[str], None]) -> Subscription:
    """Call ``hear`` with the name of every connection that ends."""

    async def parse(message: Msg) -> None:
        try:
            name = orjson.loads(message.data)["client"]["name"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            logger.warning("a disconnect event could not be read")
            return
        hear(str(name))

    return await bus.subscribe(DISCONNECTS, parse)
