"""The proxy passes bytes on unchanged when calm, and misbehaves exactly as told."""

from __future__ import annotations

import asyncio
import random

import pytest

from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.chaos.frames import FrameReader
from explorer_mq.chaos.proxy import Mood, Proxy

LINES = (
    b'CONNECT {"verbose":false}\r\n',
    b"PING\r\n",
    b"SUB a.b 1\r\n",
    b"PUB a.b 5\r\nhello\r\n",
    b"pub a.b reply.to 2\r\n\r\n\r\n",
    b"HPUB a.b 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    b"HPUB a.b reply 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    b"PUB a.b 0\r\n\r\n",
    b"UNSUB 1\r\n",
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_are_cut_whole_however_the_bytes_arrive(size):
    stream = b"".join(LINES)
    reader = FrameReader()
    found = []
    for start in range(0, len(stream), size):
        found += reader.feed(stream[start : start + size])
    assert [frame.raw for frame in found] == list(LINES)
    assert [bool(frame.subject) for frame in found] == [b"PUB" in line.upper() for line in LINES]


def test_a_payload_that_looks_like_a_frame_is_payload():
    inner = b"PUB x 1\r\na\r\n"
    line = b"PUB a.b %d\r\n%s\r\n" % (len(inner), inner)
    assert [frame.raw for frame in FrameReader().feed(line + LINES[1])] == [line, LINES[1]]


def test_random_cuts_keep_the_stream():
    rng = random.Random(3)
    stream = b"".join(rng.choices(LINES, k=400))
    reader, joined, at = FrameReader(), b"", 0
    while at < len(stream):
        end = at + rng.randint(1, 90)
        joined += b"".join(frame.raw for frame in reader.feed(stream[at:end]))
        at = end
    assert joined == stream


@pytest.fixture
async def proxy(nats_server):
    opened = Proxy(nats_server.port, seed=1)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def behind(proxy, connect):
    return await connect(proxy.url)


class Inbox:
    """Counts what arrives on a subject, by its payload."""

    def __init__(self):
        self.found = []
        self.changed = asyncio.Event()

    async def hear(self, message):
        self.found.append(message.data)
        self.changed.set()

    async def until(self, count):
        async with asyncio.timeout(10):
            while len(self.found) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def inbox(connect):
    """Listens directly at the server on ``chaos.proxy``."""
    bus = await connect()
    heard = Inbox()
    subscription = await bus.subscribe("chaos.proxy", heard.hear)
    await bus.api("INFO")
    yield heard
    await subscription.unsubscribe()


async def test_a_calm_proxy_passes_everything_once_in_order(behind, inbox):
    sent = [str(number).encode() for number in range(500)]
    for data in sent:
        await behind.publish("chaos.proxy", data)
    await inbox.until(500)
    await behind.api("INFO")
    assert inbox.found == sent


async def test_repeated_messages_come_twice_and_nothing_else_changes(proxy, behind, inbox):
    proxy.mood = Mood(repeat=1.0)
    sent = [str(number).encode() for number in range(100)]
    for data in sent:
        await behind.publish("chaos.proxy", data)
    await inbox.until(200)
    assert proxy.repeated == 100
    assert sorted(inbox.found) == sorted(sent * 2)
    firsts = list(dict.fromkeys(inbox.found))
    assert set(firsts) == set(sent)


async def test_held_messages_keep_their_order(proxy, behind, inbox):
    proxy.mood = Mood(hold_s=0.01)
    sent = [str(number).encode() for number in range(30)]
    for data in sent:
        await behind.publish("chaos.proxy", data)
    await inbox.until(30)
    assert inbox.found == sent


async def test_a_stalled_proxy_passes_nothing_until_it_resumes(proxy, behind, inbox):
    proxy.stall()
    await behind.publish("chaos.proxy", b"late")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await inbox.changed.wait()
    proxy.resume()
    await inbox.until(1)
    assert inbox.found == [b"late"]


async def test_a_cut_connection_is_made_anew(proxy, behind, inbox):
    back = asyncio.Event()
    behind.on_reconnect(back.set)
    assert proxy.cut() == 1
    async with asyncio.timeout(10):
        await back.wait()
    await behind.publish("chaos.proxy", b"again")
    await inbox.until(1)


async def test_a_client_of_a_dead_server_sees_a_closed_connection(server, run):
    proxy = Proxy(server.port, seed=1)
    await proxy.start()
    server.kill()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    async with asyncio.timeout(5):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()
    server.restart()
    async with await Bus.connect(run, BusOptions(url=proxy.url)) as bus:
        assert bus.is_connected
    await proxy.close()
