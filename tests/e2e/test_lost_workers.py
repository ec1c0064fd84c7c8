"""Workers that are killed, asked to end, or stopped: how soon their slices run elsewhere."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from contextlib import asynccontextmanager

import pytest

from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.bus.embedded import find_binary
from explorer_mq.bus.follower import Follower
from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.crew import Pulse
from explorer_mq.roster import Roster
from explorer_mq_schemas.beats import Claims
from explorer_mq_schemas.results import ATTEMPT_HEADER, Attempt
from tests.e2e.processes import Processes, tasks

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(90)]

HOLD = ["--worker.engine.type", "synthetic", "--worker.engine.latency_s", "60"]
GRACE_S = 1.0


class ClaimLog:
    """Which worker took which slice, when."""

    def __init__(self):
        self.taken = {}
        self.changed = Pulse()

    async def hear(self, message):
        claims = Claims.decode(message.data)
        for claim in claims.claims:
            self.taken.setdefault(claims.worker, {})[claim.task] = time.monotonic()
        self.changed.beat()

    async def until(self, worker, count, seconds=20):
        async with asyncio.timeout(seconds):
            while len(self.taken.get(worker, {})) < count:
                await self.changed.wait()


@asynccontextmanager
async def claim_log(bus):
    log = ClaimLog()
    heard = await bus.subscribe(bus.names.all_claims, log.hear)
    try:
        yield log
    finally:
        await heard.unsubscribe()


async def lost_attempts(bus):
    stream, names = bus.names.results_stream, bus.names
    async with Follower(bus, stream, [names.all_attempts], headers_only=True) as follower:
        found = await follower.catch_up()
    return [Attempt.decode(message.headers[ATTEMPT_HEADER]) for message in found]


async def seconds_until_elsewhere(bus, processes, how, *, lease_s):
    """``one`` takes four slices and is ended ``how``; until ``two`` has taken them all."""
    processes.common += ["--scheduler.lease_s", str(lease_s)]
    async with claim_log(bus) as log:
        processes.start("coordinator", "coordinator")
        await CoordinatorHandle(bus).wait_ready()
        processes.start("one", "worker", "--worker.id", "one", "--worker.slots", "4", *HOLD)
        handle = CoordinatorHandle(bus)
        await handle.submit_batch(batch_id=1, tasks=tasks(4))
        await log.until("one", 4)
        processes.start("two", "worker", "--worker.id", "two", "--worker.slots", "4", *HOLD)
        await processes.logged("two", "worker=two ready")
        started = time.monotonic()
        processes.children["one"].send_signal(how)
        await log.until("two", 4, seconds=30)
        return max(log.taken["two"].values()) - started


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def test_killed_worker_is_noticed_by_its_connection(processes, connect):
    """The lease of 10 s plays no part: the server tells, and a worker may come back for 1 s."""
    bus = await connect()
    seconds = await seconds_until_elsewhere(bus, processes, signal.SIGKILL, lease_s=10)
    assert GRACE_S <= seconds < GRACE_S + 0.5
    lost = await lost_attempts(bus)
    assert {(one.worker, one.end, one.attempt) for one in lost} == {("one", "lost", 1)}
    assert len(lost) == 4


async def test_terminated_worker_hands_back_at_once(processes, connect):
    bus = await connect()
    seconds = await seconds_until_elsewhere(bus, processes, signal.SIGTERM, lease_s=10)
    assert seconds < 0.5
    assert [one.end for one in await lost_attempts(bus)] == ["drained"] * 4


async def test_killed_worker_without_disconnect_events_costs_its_lease(run, tmp_path):
    config = tmp_path / "plain.conf"
    config.write_text(f'listen: "127.0.0.1:-1"\njetstream {{ store_dir: "{tmp_path}/store" }}\n')
    with subprocess.Popen([find_binary(), "-c", str(config)], stderr=subprocess.PIPE) as server:
        try:
            while b"client connections on" not in (line := server.stderr.readline()):
                continue
            url = f"nats://{line.split()[-1].decode()}"
            processes = Processes(run, url, tmp_path)
            try:
                async with await Bus.connect(run, BusOptions(url=url)) as bus:
                    seconds = await seconds_until_elsewhere(
                        bus, processes, signal.SIGKILL, lease_s=3
                    )
            finally:
                processes.stop()
        finally:
            server.kill()
    assert 1.0 < seconds < 3.0 + 0.5


async def test_zombie_is_refused_and_carries_on(processes, connect):
    """Stopped for three leases, its slice ran elsewhere; awake, its own result is refused."""
    bus = await connect()
    processes.common += ["--scheduler.lease_s", "1"]
    roster = Roster(bus, beat_interval_s=0.5)
    await roster.start()

    async def beat_of(worker, condition):
        async with asyncio.timeout(30):
            while not any(b.worker == worker and condition(b) for b in roster.workers()):
                await roster.changed.wait(1)

    processes.start("coordinator", "coordinator")
    handle = CoordinatorHandle(bus)
    await handle.wait_ready()
    async with claim_log(bus) as log:
        processes.start("slow", "worker", "--worker.id", "slow", "--worker.slots", "1", *HOLD)
        await processes.logged("slow", "worker=slow ready")
        await handle.submit_batch(batch_id=1, tasks=tasks(2))
        await log.until("slow", 1)
        processes.worker("zombie", latency_s=2.0)
        await log.until("zombie", 1)
        processes.children["zombie"].send_signal(signal.SIGSTOP)
        processes.worker("other", latency_s=2.0)
        await log.until("other", 1)
        while (await handle.wait_batch(1, seconds=5)).settled_tasks < 1:
            continue
        processes.children["zombie"].send_signal(signal.SIGCONT)
        await beat_of("zombie", lambda beat: beat.rejected_results == 1 and beat.lost_leases == 1)
        processes.kill("other")
        processes.kill("slow")
        result = await handle.finalize_train_batch(1, timeout=30)
        assert (result.completed_runs, result.experiences) == (8, 8)
    await roster.close()
