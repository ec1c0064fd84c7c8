"""An explorer killed with -9 over and over: each step and eval is in rows and training stream once."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.monitors.rows import read_rows
from explorer_mq.trainer.client import TrainerClient
from tests.e2e.processes import Processes

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(120)]

WORKFLOWS = Path(__file__).parents[1] / "coordinator" / "workflows.py"
STEPS, KILLS = 40, 20


def write_config(folder):
    """A run of 40 steps with two eval sets, as a user would write it down."""
    sets = []
    for kind, names in (("tasksets", ["train"]), ("eval_tasksets", ["one", "two"])):
        for name in names:
            rows = [json.dumps({"prompt": f"{name} {n}", "answer": "x"}) for n in range(6)]
            (folder / f"{name}.jsonl").write_text("\n".join(rows))
            sets += [
                f"[[explorer.{kind}]]",
                f'name = "{name}"',
                f'path = "{folder / name}.jsonl"',
                'workflow = "single_turn"',
                'reward_fn = "exact_match"',
                "repeat_times = 2",
                f'selector = "{"shuffle" if name == "train" else "sequential"}"',
            ]
    loop = [
        "[explorer]",
        'policy = "one_step_off"',
        "batch_size = 4",
        f"total_steps = {STEPS}",
        "eval_interval = 10",
        "[monitors]",
        f'dir = "{folder / "monitors"}"',
    ]
    config = folder / "run.toml"
    config.write_text("\n".join([*loop, *sets]))
    return config


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def train(run, url, seen):
    async with TrainerClient(run, url, "trainer") as client:
        while len(seen) < STEPS:
            batch = await client.next_batch()
            seen.append(batch.batch_id)
            await client.publish_weights({"w": np.zeros(1, np.float32)}, len(seen))
            await batch.ack()


async def test_every_step_and_eval_appears_once(processes, connect, nats_server, run, tmp_path):
    config = write_config(tmp_path)
    handle = CoordinatorHandle(await connect())
    rng = random.Random(run)
    processes.start("explorer", "coordinator", "@", str(config))
    processes.worker("worker", 0.2)
    seen = []
    training = asyncio.create_task(train(run, nats_server.url, seen), name="trainer")
    for _ in range(KILLS):
        await handle.wait_ready()
        await asyncio.wait([training], timeout=rng.uniform(0.0, 0.5))
        processes.kill("explorer")
        processes.start("explorer", "coordinator", "@", str(config))
    assert await asyncio.to_thread(processes.wait, "explorer") == 0, processes.log("explorer")
    await training
    assert seen == list(range(1, STEPS + 1))
    rows = list(read_rows(tmp_path / "monitors" / run / "metrics.jsonl"))
    assert sorted(r["step"] for r in rows if r["kind"] == "metrics") == list(range(1, STEPS + 1))
    for name in ("one", "two"):
        evals = sorted(r["step"] for r in rows if r["kind"] == f"eval/{name}")
        assert evals == [0, 10, 20, 30, 40]


async def test_error_in_the_loop_is_the_last_line_and_a_restart_goes_on(
    processes, connect, nats_server, run, tmp_path
):
    config = write_config(tmp_path)
    rows = tmp_path / "train.jsonl"
    whole = rows.read_text()
    lines = whole.splitlines()
    rows.write_text("\n".join([*lines[:4], "x" * len(lines[4]), *lines[5:]]))
    processes.start("explorer", "coordinator", "@", str(config))
    processes.worker("worker", 0.0)
    seen = []
    training = asyncio.create_task(train(run, nats_server.url, seen), name="trainer")
    assert await asyncio.to_thread(processes.wait, "explorer") == 2
    last = processes.log("explorer").splitlines()[-1]
    assert "train.jsonl:5" in last
    rows.write_text(whole)
    processes.start("explorer", "coordinator", "@", str(config))
    assert await asyncio.to_thread(processes.wait, "explorer") == 0, processes.log("explorer")
    await training
    assert seen == list(range(1, STEPS + 1))
    handle = CoordinatorHandle(await connect())
    reset = ["-m", "explorer_mq", "run", "reset", "--run", run, "--nats.url", nats_server.url]
    refused = await asyncio.to_thread(
        subprocess.run, [sys.executable, *reset], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    await asyncio.to_thread(
        subprocess.run, [sys.executable, *reset, "--yes"], capture_output=True, check=True
    )
    processes.start("again", "coordinator", "@", str(config))
    await handle.wait_ready()
    assert (await handle.status())["batches"].get("finalized", 0) < STEPS
