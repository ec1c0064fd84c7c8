"""Fixtures shared by all tests: a real nats-server, fresh runs on it, connections to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from hypothesis import settings

from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.bus.topology import ensure, ensure_pool, remove
from explorer_mq_schemas.ids import new_id

LEASE_S = 2.0

# A deadline per example measures the machine's load, not the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for all tests that do not harm it."""
    with EmbeddedServer(tmp_path_factory.mktemp("nats"), run="tests") as server:
        yield server


@pytest.fixture
def server(tmp_path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be killed and restarted."""
    with EmbeddedServer(tmp_path / "nats", run="test") as own:
        yield own


@pytest.fixture
def run() -> str:
    """A fresh run name."""
    return new_id("test")


@pytest.fixture
async def connect(
    nats_server: EmbeddedServer, run: str
) -> AsyncIterator[Callable[..., Awaitable[Bus]]]:
    """Further connections to the same run; closed at the end."""
    opened: list[Bus] = []

    async def open_bus(url: str | None = None) -> Bus:
        opened.append(await Bus.connect(run, BusOptions(url=url or nats_server.url)))
        return opened[-1]

    yield open_bus
    for bus in opened:
        await bus.close()


@pytest.fixture
async def bus(connect: Callable[..., Awaitable[Bus]]) -> AsyncIterator[Bus]:
    """A connection to a fresh run whose streams and default pool exist."""
    opened = await connect()
    await ensure(opened)
    await ensure_pool(opened, "default", lease_s=LEASE_S)
    yield opened
    await remove(opened)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set up logging for their process; the tests after them hear warnings again."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in handlers if handler in root.handlers] or handlers
    logging.captureWarnings(capture=False)


@pytest.fixture(autouse=True)
async def no_leaked_tasks() -> AsyncIterator[None]:
    """A test that leaves its own asyncio tasks running has failed to own them."""
    before = asyncio.all_tasks()
    yield
    left = [task for task in asyncio.all_tasks() - before if not task.done()]
    names = sorted(task.get_name() for task in left)
    assert not [name for name in names if not name.startswith("Task-")], names
