"""``explorer-mq why`` against real processes: the cause of a standstill and what would help."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import orjson
import pytest

from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.scheduler import Scheduler
from explorer_mq_schemas.events import Event
from tests.e2e.processes import Processes, tasks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

HOLD = ["--worker.engine.type", "synthetic", "--worker.engine.latency_s", "60"]


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def why(run, url):
    command = [sys.executable, "-m", "explorer_mq", "why", "--run", run, "--nats.url", url]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "--json"], capture_output=True, check=True, timeout=30
    )
    return [orjson.loads(line) for line in done.stdout.splitlines()]


async def cause(run, url):
    return (await why(run, url))[0]["cause"]


async def test_each_standstill_is_named(processes, connect, nats_server, run):
    url = nats_server.url
    bus = await connect()
    assert await cause(run, url) == "no_coordinator"
    processes.start("coordinator", "coordinator", "--scheduler.stall_report_s", "1")
    handle = CoordinatorHandle(bus)
    await handle.wait_ready()
    assert await cause(run, url) == "no_work"

    heard = asyncio.Queue()

    async def hear(message):
        event = Event.decode(message.data)
        if event.kind == "stalled":
            heard.put_nowait(event)

    told = await bus.subscribe(bus.names.all_events, hear)
    await handle.submit_batch(batch_id=1, tasks=tasks(2))
    (finding,) = await why(run, url)
    assert finding["cause"] == "no_worker"
    assert finding["remedy"] == f"explorer-mq worker --run {run} --worker.pools default"
    async with asyncio.timeout(10):
        event = await heard.get()
    assert (event.cause, event.remedy) == ("no_worker", finding["remedy"])
    assert "nothing has moved for" in event.text
    await told.unsubscribe()

    processes.start("slow", "worker", "--worker.id", "slow", *HOLD)
    await processes.logged("slow", "worker=slow ready")
    scheduler = Scheduler.get_actor(bus)
    while not await scheduler.get_all_state():
        continue
    assert await cause(run, url) == "working"
    processes.children["slow"].send_signal(signal.SIGSTOP)
    while await cause(run, url) != "silent_worker":
        continue
    processes.kill("slow")
    processes.worker("fast", 0.0)
    while (await handle.wait_batch(1, seconds=5)).settled_tasks < 2:
        continue
    assert await cause(run, url) == "not_finalized"
    await handle.finalize(1)
    assert await cause(run, url) == "no_work"


async def test_unreachable_server_is_named(run):
    (finding,) = await why(run, "nats://127.0.0.1:1")
    assert finding["cause"] == "server_unreachable"
