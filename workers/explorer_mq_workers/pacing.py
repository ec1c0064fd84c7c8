"""Sending what has changed: at once, but not in every instant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress


class Paced:
    """Calls ``send`` when poked: at once, then at most every ``gap_s``.

    Pokes that come meanwhile make one call together. With ``idle_s`` it is also called when it was
    not poked for so long.
    """

    def __init__(
        self, send: Callable[[], Awaitable[None]], *, gap_s: float, idle_s: float | None = None
    ) -> None:
        self._send = send
        self._gap_s = gap_s
        self._idle_s = idle_s
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """There is something to send."""
        self._poked.set()

    async def run(self) -> None:
        """Send until cancelled."""
        never = asyncio.Event()
        while True:
            await _within(self._poked, self._idle_s)
            self._poked.clear()
            await self._send()
            await _within(never, self._gap_s)


async def _within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for ``event``, at most ``seconds``."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
