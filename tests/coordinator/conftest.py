from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from explorer_mq.coordinator import RolloutCoordinator
from explorer_mq.settings import Settings, SyntheticSettings
from explorer_mq_workers.engines.synthetic import SyntheticEngine
from explorer_mq_workers.worker import Worker


def make_settings(run, **scheduler):
    return Settings(
        run=run,
        scheduler={"lease_s": 2.0, "max_timeout_s": 5.0, **scheduler},
        worker={"slots": 4, "engine": {"type": "synthetic"}},
    )


@pytest.fixture
def start_coordinator(connect, run):
    """A context in which a coordinator of the run is alive."""

    @asynccontextmanager
    async def start(**scheduler):
        coordinator = RolloutCoordinator(await connect(), make_settings(run, **scheduler))
        await coordinator.prepare()
        try:
            yield coordinator
        finally:
            await coordinator.shutdown()

    return start


@pytest.fixture
def start_worker(connect, run):
    """A context in which a worker with the synthetic engine is alive."""

    @asynccontextmanager
    async def start(**engine):
        settings = make_settings(run)
        synthetic = SyntheticEngine(SyntheticSettings(**engine))
        await synthetic.start()
        worker = Worker(await connect(), synthetic, settings)
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop), name="worker")
        try:
            yield worker
        finally:
            stop.set()
            await running

    return start
