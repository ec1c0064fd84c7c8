"""A TCP proxy between one worker and the server that misbehaves when told to.

It passes whole client frames on in their order, so that it may repeat one or hold the stream between
two, as a network or a client that lost an answer would. It never reorders: NATS runs over TCP.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from explorer_mq.chaos.frames import Frame, FrameReader
from explorer_mq.crew import Crew

_CHUNK_BYTES = 64 << 10
_ECHO_S = 0.3


@dataclass(frozen=True, slots=True)
class Mood:
    """How a proxy treats published messages.

    Each is held up to ``hold_s``; each is sent twice with probability ``repeat``, the second time at
    once or up to 0.3 s later, as after an answer that was lost.
    """

    hold_s: float = 0.0
    repeat: float = 0.0


CALM = Mood()


class Proxy:
    """Listens on a port of its own and connects every client to the server at ``port``."""

    def __init__(self, port: int, *, seed: int) -> None:
        self._upstream = port
        self._rng = random.Random(seed)  # noqa: S311 - not for secrets
        self._crew = Crew()
        self._links: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: asyncio.Server | None = None
        self.mood = CALM
        self.repeated = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Where the worker connects."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Begin to listen."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()
        await self._crew.close()

    def cut(self) -> int:
        """Drop every connection with what is on its way; returns how many there were."""
        links = list(self._links)
        for link in links:
            link.transport.abort()
        return len(links) // 2

    def stall(self) -> None:
        """Take and pass on nothing, in both directions, until :meth:`resume`: a slow consumer."""
        self._flowing.clear()

    def resume(self) -> None:
        """End a stall."""
        self._flowing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._crew.start(self._connect(reader, writer), name="proxy link")

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            # The server is down: the client sees a connection that closes at once.
            writer.transport.abort()
            return
        links = {writer, up_writer}
        self._links |= links
        pumps = [
            asyncio.create_task(self._pump_frames(reader, up_writer), name="proxy up"),
            asyncio.create_task(self._pump_bytes(up_reader, writer), name="proxy down"),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links -= links
            for link in links:
                link.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump_bytes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._flowing.wait()
            chunk = await reader.read(_CHUNK_BYTES)
            if not chunk:
                return
            await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()

    async def _pump_frames(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        frames = FrameReader()
        while True:
            await self._flowing.wait()
            chunk = await reader.read(_CHUNK_BYTES)
            if not chunk:
                return
            for frame in frames.feed(chunk):
                await self._flowing.wait()
                await self._pass_on(frame, writer)
            await writer.drain()

    async def _pass_on(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        mood = self.mood
        if frame.subject and mood.hold_s:
            await self._hold(self._rng.uniform(0.0, mood.hold_s))
        writer.write(frame.raw)
        if frame.subject and self._rng.random() < mood.repeat:
            self.repeated += 1
            if self._rng.random() < 0.5:
                writer.write(frame.raw)
            else:
                later = self._rng.uniform(0.0, _ECHO_S)
                asyncio.get_running_loop().call_later(later, _echo, writer, frame.raw)

    async def _hold(self, seconds: float) -> None:
        """Wait; a cut ends the wait with the connection."""
        never = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await never.wait()
        except TimeoutError:
            return


def _echo(writer: asyncio.StreamWriter, raw: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(raw)
