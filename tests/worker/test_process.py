"""Worker processes that are stopped, or hold a workflow that nothing can end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

LEASE_S = 2.0


@pytest.fixture
def start_process(nats_server, run, tmp_path):
    """Start a worker as a process of its own."""
    children = []

    def start(name):
        options = {
            "run": run,
            "nats.url": nats_server.url,
            "worker.id": name,
            "worker.slots": 2,
            "worker.engine.type": "synthetic",
            "worker.beat_interval_s": 0.1,
            "worker.drain_timeout_s": 2,
            "scheduler.lease_s": LEASE_S,
        }
        command = [sys.executable, "-m", "explorer_mq", "worker"]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        with (tmp_path / f"{name}.log").open("ab") as log:
            children.append(subprocess.Popen(command, stdout=log, stderr=log))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


async def ended(child, seconds):
    """Exit code of ``child``, waited for off the loop."""
    return await asyncio.to_thread(child.wait, seconds)


async def test_stopped_worker_does_no_harm_when_it_goes_on(
    bench, start_process, make_slice, tmp_path
):
    row = {"raw_task": {"file": str(tmp_path / "go")}}
    zombie = start_process("zombie")
    await bench.beat(lambda b: b.state == "ready", seconds=20)
    await bench.queue.publish([make_slice(0, "until_file", task=row, max_attempts=2)])
    await bench.beat(lambda b: b.running)
    zombie.send_signal(signal.SIGSTOP)
    heir = start_process("heir")
    beat = await bench.beat(lambda b: b.worker == "heir" and b.running, seconds=20)
    assert beat.running[0].attempt == 2
    lease = beat.running[0].lease
    zombie.send_signal(signal.SIGCONT)
    beat = await bench.beat(lambda b: b.worker == "zombie" and b.lost_leases)
    assert [one.lease for one in beat.running] == [""]
    zombie.terminate()  # it must not hand back what it does not hold
    assert await ended(zombie, 10) == 0
    again = await bench.beat(lambda b: b.worker == "heir" and b.running)
    assert again.running[0].lease == lease
    (tmp_path / "go").touch()
    _, result = await bench.result()
    assert (result.worker, result.attempt) == ("heir", 2)
    await bench.until_queued(0)
    assert heir.poll() is None


async def test_stopped_workers_result_is_refused_when_another_was_first(
    bench, start_process, make_slice, tmp_path
):
    row = {"raw_task": {"file": str(tmp_path / "go")}}
    zombie = start_process("zombie")
    await bench.beat(lambda b: b.state == "ready", seconds=20)
    await bench.queue.publish([make_slice(0, "until_file", task=row, max_attempts=2)])
    await bench.beat(lambda b: b.running)
    zombie.send_signal(signal.SIGSTOP)
    start_process("heir")
    await bench.beat(lambda b: b.worker == "heir" and b.running, seconds=20)
    (tmp_path / "go").touch()
    _, result = await bench.result()
    assert result.worker == "heir"
    zombie.send_signal(signal.SIGCONT)
    beat = await bench.beat(lambda b: b.worker == "zombie" and b.rejected_results)
    assert (beat.rejected_results, beat.lost_leases) == (1, 1)
    await bench.until_queued(0)


async def test_process_ends_although_a_workflow_will_not(bench, start_process, make_slice):
    child = start_process("w")
    await bench.beat(lambda b: b.state == "ready", seconds=20)
    await bench.queue.publish([make_slice(0, "swallow_for_ever")])
    await bench.beat(lambda b: b.running)
    os.kill(child.pid, signal.SIGTERM)
    assert await ended(child, 10) == 0
    assert (await bench.attempt()).end == "drained"
