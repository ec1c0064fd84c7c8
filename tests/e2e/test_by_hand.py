"""The processes of the README, started as a user would, and killed as the world would."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.roster import Roster
from explorer_mq.trainer.client import TrainerClient
from tests.e2e.processes import Processes, tasks

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(90)]


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def until(roster, condition):
    while not condition({beat.worker: beat for beat in roster.workers()}):
        await roster.changed.wait(5)


@pytest.fixture
async def roster(connect):
    bus = await connect()
    opened = Roster(bus, beat_interval_s=0.5)
    await opened.start()
    yield opened
    await opened.close()


async def expect_whole(batch, count, repeat=4):
    arrays = batch.arrays()
    pairs = sorted(zip(arrays["task"].tolist(), arrays["run"].tolist(), strict=True))
    assert pairs == [(task, run) for task in range(count) for run in range(repeat)]
    await batch.ack()


async def test_batch_survives_kill_9_of_a_worker_and_of_the_coordinator(
    processes, connect, roster, nats_server, run
):
    bus = await connect()
    processes.worker("one", 0.2)
    processes.worker("two", 0.2)
    await until(roster, lambda beats: {"one", "two"} <= beats.keys())
    processes.start("coordinator", "coordinator")
    await CoordinatorHandle(bus).wait_ready()
    handle = CoordinatorHandle(bus)
    await handle.submit_batch(batch_id=1, tasks=tasks(60), auto_finalize=True)
    await until(roster, lambda beats: "one" in beats and beats["one"].running)
    processes.kill("one")
    processes.kill("coordinator")
    processes.start("coordinator", "coordinator")
    async with TrainerClient(run, nats_server.url, "t") as client:
        async with asyncio.timeout(60):
            batch = await client.next_batch()
        await expect_whole(batch, 60)
        assert batch.manifest.completed_runs == 240


async def test_worker_that_waits_for_its_coordinator_can_be_stopped(processes, roster):
    processes.worker("early", 0)
    await until(roster, lambda beats: "early" in beats)
    assert processes.kill("early", signal.SIGTERM) == 0


async def test_terminated_worker_hands_back_within_half_a_second(
    processes, connect, roster, nats_server, run
):
    bus = await connect()
    processes.start("coordinator", "coordinator")
    await CoordinatorHandle(bus).wait_ready()
    processes.worker("slow", 60)
    await until(roster, lambda beats: "slow" in beats and beats["slow"].state == "ready")
    handle = CoordinatorHandle(bus)
    await handle.submit_batch(batch_id=1, tasks=tasks(2), auto_finalize=True)
    await until(roster, lambda beats: len(beats["slow"].running) == 2)
    processes.worker("quick", 0)
    await until(roster, lambda beats: "quick" in beats and beats["quick"].state == "ready")
    assert processes.kill("slow", signal.SIGTERM) == 0
    async with TrainerClient(run, nats_server.url, "t") as client:
        async with asyncio.timeout(1.5):
            batch = await client.next_batch()
        await expect_whole(batch, 2)


async def test_work_goes_on_after_kill_9_of_the_server(server, run, tmp_path):
    processes = Processes(run, server.url, tmp_path)
    try:
        async with await Bus.connect(run, BusOptions(url=server.url)) as bus:
            processes.start("coordinator", "coordinator")
            await CoordinatorHandle(bus).wait_ready()
            processes.worker("one", 0.1)
            roster = Roster(bus, beat_interval_s=0.5)
            await roster.start()
            handle = CoordinatorHandle(bus)
            await handle.submit_batch(batch_id=1, tasks=tasks(60), auto_finalize=True)
            await until(roster, lambda beats: "one" in beats and beats["one"].running)
            server.restart()
            async with TrainerClient(run, server.url, "t") as client:
                async with asyncio.timeout(60):
                    batch = await client.next_batch()
                await expect_whole(batch, 60)
            await roster.close()
    finally:
        processes.stop()


async def test_malformed_task_message_is_set_aside_and_the_worker_lives_on(
    processes, connect, roster
):
    bus = await connect()
    processes.start("coordinator", "coordinator")
    await CoordinatorHandle(bus).wait_ready()
    processes.worker("one", 0)
    await until(roster, lambda beats: "one" in beats and beats["one"].state == "ready")
    await bus.request(f"{bus.names.root}.task.default.normal.b.0.0", b"\xff not a slice")
    handle = CoordinatorHandle(bus)
    await handle.submit_batch(batch_id=1, tasks=tasks(1))
    result = await handle.finalize_train_batch(1, timeout=20)
    assert result.finished_task_count == 1
    dead = await bus.api(f"STREAM.INFO.{bus.names.dead_stream}")
    assert dead["state"]["messages"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["worker", "--worker.slotz", "3"], 2, "worker.slots"),
        (["worker", "--worker.engine.model", "no-such-dir"], 2, "no-such-dir"),
        (["worker", "--nats.url", "nats://127.0.0.1:9"], 3, "127.0.0.1:9"),
        (["status", "--run", "nobody-runs-this"], 4, "nobody-runs-this"),
    ],
)
def test_wrong_use_ends_with_one_line_and_its_exit_code(nats_server, arguments, code, words):
    url = [] if "--nats.url" in arguments else ["--nats.url", nats_server.url]
    command = [sys.executable, "-m", "explorer_mq", *arguments, *url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (code, 1), done.stderr
    assert words in done.stderr


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_demo_runs_on_real_parts(tmp_path):
    command = [sys.executable, "-m", "explorer_mq", "demo", "--json"]
    options = ["--demo.steps", "20", "--demo.out_dir", str(tmp_path / "demo")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["steps"], result["lost"], result["duplicates"]) == (20, 0, 0)
    assert result["policy_versions"] >= 10
    assert result["logprob_max_abs_diff"] <= 1e-3
    assert result["reward_last"] > result["reward_first"]
    assert (tmp_path / "demo" / "reward.png").stat().st_size > 1000
