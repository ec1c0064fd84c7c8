"""Waiting for a server that is away, without asking in a loop."""

from __future__ import annotations

import asyncio

from explorer_mq.bus.connection import Bus


async def until_reconnected(bus: Bus, *, at_most_s: float) -> None:
    """Return when ``bus`` has reconnected, or after ``at_most_s`` if it never lost touch."""
    back = asyncio.Event()
    forget = bus.on_reconnect(back.set)
    try:
        async with asyncio.timeout(at_most_s):
            await back.wait()
    except TimeoutError:
        return
    finally:
        forget()
