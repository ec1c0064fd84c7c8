"""Two coordinator processes on one run: refused, standing by, fenced after a stop."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_schemas.errors import ExplorerError
from tests.e2e.processes import SYNTHETIC, Processes, tasks

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(90)]


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def answering(handle, seconds=20):
    """Wait until some coordinator answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return await handle.status()
        except ExplorerError:
            await handle._bus.wait_reconnect(0.05)
    raise AssertionError("no coordinator answers")


async def test_second_coordinator_is_refused_with_the_remedy(processes, connect):
    handle = CoordinatorHandle(await connect())
    processes.start("first", "coordinator")
    await answering(handle)
    processes.start("second", "coordinator")
    assert await asyncio.to_thread(processes.wait, "second") == 1
    log = processes.log("second")
    assert "is led by exmq/" in log
    assert "--standby" in log
    assert (await handle.status())["workers"] == 0


async def test_standby_takes_over_from_a_killed_leader_at_once(processes, connect, run):
    handle = CoordinatorHandle(await connect())
    processes.start("leader", "coordinator")
    await answering(handle)
    processes.start("standby", "coordinator", "--standby")
    await processes.logged("standby", "waits as standby")
    await handle.submit_batch(batch_id=1, tasks=tasks(3))
    processes.kill("leader")
    started = time.monotonic()
    found = await answering(handle)
    seconds = time.monotonic() - started
    assert found["batches"] == {"running": 1}
    assert seconds < 4, "the lease of 5 s was waited for, although the connection had ended"


async def test_stopped_leader_finds_itself_fenced_and_nothing_is_finalized_twice(
    processes, connect, nats_server, run
):
    handle = CoordinatorHandle(await connect())
    processes.start("leader", "coordinator", "--scheduler.leader_ttl_s", "1")
    await answering(handle)
    processes.start("standby", "coordinator", "--standby", "--scheduler.leader_ttl_s", "1")
    await processes.logged("standby", "waits as standby")
    await handle.submit_batch(batch_id=1, tasks=tasks(6), auto_finalize=True)
    processes.children["leader"].send_signal(signal.SIGSTOP)
    processes.worker("worker", 0.0)
    async with TrainerClient(run, nats_server.url, "t") as client:
        async with asyncio.timeout(40):
            batch = await client.next_batch()
        await batch.ack()
        assert batch.manifest.completed_runs == 24
        processes.children["leader"].send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(processes.wait, "leader") == 1
        assert "lost leadership" in processes.log("leader")
        await handle.submit_batch(batch_id=2, tasks=tasks(2), auto_finalize=True)
        async with asyncio.timeout(20):
            batch = await client.next_batch()
        assert batch.batch_id == 2, "batch 1 came once"
        await batch.ack()
    assert SYNTHETIC
