"""A worker in this process without a coordinator: tests queue slices and read what it says."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.tasks import TaskQueue
from explorer_mq.bus.topology import ensure, ensure_pool
from explorer_mq.plugins import load
from explorer_mq.settings import Settings, SyntheticSettings
from explorer_mq_schemas.beats import Claims, WorkerBeat
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.results import Attempt, Result
from explorer_mq_schemas.tasks import Slice, Task
from explorer_mq_workers.engines.synthetic import SyntheticEngine
from explorer_mq_workers.worker import Worker

WORKFLOWS = Path(__file__).with_name("workflows.py")
LEASE_S = 2.0


@pytest.fixture
def make_slice():
    """A slice of task ``number`` whose workflow is ``name``; ``task`` are further task fields."""

    def make(number, name="good", *, batch="b", runs=1, task=None, **fields):
        task = Task(workflow=f"{WORKFLOWS}:{name}", **(task or {}))
        run_ids = tuple(range(runs))
        return Slice(
            batch=batch, task_number=number, number=0, run_ids=run_ids, task=task, **fields
        )

    return make


@pytest.fixture
def gate():
    """An event that workflows wait for, with its ``name``; opened at the end."""
    opened = asyncio.Event()
    opened.name = uuid.uuid4().hex
    load_workflow("gates")[opened.name] = opened
    yield opened
    opened.set()


@pytest.fixture
def seen():
    """What workflows have to tell."""
    found = load_workflow("seen")
    found.clear()
    return found


def load_workflow(name):
    return load(f"{WORKFLOWS}:{name}", "explorer_mq.workflows")


class Bench:
    """The run as a coordinator would see it: queue, reports, beats and claims."""

    def __init__(self, bus, publisher, log):
        self.bus = bus
        self.queue = TaskQueue(bus, publisher)
        self.results = ResultLog(bus, publisher)
        self.publisher = publisher
        self._log = log
        self._reports = []
        self.beats = asyncio.Queue()
        self.claims = asyncio.Queue()

    async def hear_beat(self, message):
        self.beats.put_nowait(WorkerBeat.decode(message.data))

    async def hear_claims(self, message):
        self.claims.put_nowait(Claims.decode(message.data))

    async def report(self, seconds=10.0):
        """Slice and what was reported about it next: a result or an attempt."""
        async with asyncio.timeout(seconds):
            while not self._reports:
                self._reports += [self.results.parse(m) for m in await self._log.next_batch()]
        return self._reports.pop(0)

    async def result(self, seconds=10.0):
        """The next result; an attempt in its place is an error."""
        key, report = await self.report(seconds)
        assert isinstance(report, Result), report
        return key, report

    async def attempt(self, seconds=10.0):
        """The next attempt record; a result in its place is an error."""
        _, report = await self.report(seconds)
        assert isinstance(report, Attempt), report
        return report

    async def beat(self, wanted, seconds=10.0):
        """The first beat from now on for which ``wanted(beat)`` holds."""
        while not self.beats.empty():
            self.beats.get_nowait()
        async with asyncio.timeout(seconds):
            while True:
                beat = await self.beats.get()
                if wanted(beat):
                    return beat

    async def cancel(self, batch="b", *tasks):
        await self.bus.publish(self.bus.names.cancel, Cancel(batch=batch, tasks=tasks).encode())

    async def queued(self):
        """Slices that are queued or under a lease."""
        info = await self.bus.api(f"STREAM.INFO.{self.bus.names.tasks_stream}")
        return info["state"]["messages"]

    async def until_queued(self, count, seconds=5.0):
        """Wait until so many slices are queued or under a lease."""
        async with asyncio.timeout(seconds):
            while await self.queued() != count:
                pass


@asynccontextmanager
async def open_bench(bus):
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(Publisher(bus))
        log = await stack.enter_async_context(ResultLog(bus, publisher).follow(1))
        bench = Bench(bus, publisher, log)
        for subject, hear in (
            (bus.names.all_beats, bench.hear_beat),
            (bus.names.all_claims, bench.hear_claims),
        ):
            stack.push_async_callback((await bus.subscribe(subject, hear)).unsubscribe)
        yield bench


@pytest.fixture
async def bench(bus):
    """The run on the server that all tests share."""
    async with open_bench(bus) as opened:
        yield opened


@pytest.fixture
async def own_bench(server, run, connect):
    """The run on a server of the test's own, to be killed."""
    bus = await connect(server.url)
    await ensure(bus)
    await ensure_pool(bus, "default", lease_s=LEASE_S)
    async with open_bench(bus) as opened:
        yield opened


@pytest.fixture
def start_worker(connect, run):
    """A context in which a worker is alive; ``engine`` may be one, or settings of a synthetic one."""

    @asynccontextmanager
    async def start(*, engine=None, url=None, scheduler=None, **worker):
        if not isinstance(engine, SyntheticEngine):
            engine = SyntheticEngine(SyntheticSettings(**(engine or {})))
        settings = Settings(
            run=run,
            scheduler={"lease_s": LEASE_S, **(scheduler or {})},
            worker={"slots": 4, "engine": {"type": "synthetic"}, **worker},
        )
        await engine.start()
        opened = Worker(await connect(url), engine, settings)
        stop = asyncio.Event()
        opened.stop = stop
        running = opened.running = asyncio.create_task(opened.run(stop), name="worker")
        try:
            yield opened
        finally:
            stop.set()
            await running

    return start
