"""Exploring a generated set and a GSM8K file with the real engine: formats, counts, metrics."""

from __future__ import annotations

import asyncio
import json

import pytest

from explorer_mq.demo.model import write_tiny_model
from explorer_mq.monitors.rows import read_rows
from explorer_mq.trainer.client import TrainerClient
from tests.e2e.processes import Processes

pytestmark = [pytest.mark.engine, pytest.mark.e2e, pytest.mark.timeout(180)]

GSM8K = [
    {
        "question": f"Ann has {n} apples and buys {n + 1} more. How many has she?",
        "answer": f"She has {n} + {n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1}.\n#### {2 * n + 1}",
    }
    for n in range(6)
]
CONFIG = """
[explorer]
policy = "fully_async"
batch_size = 4
total_steps = 3
eval_interval = 3
eval_on_startup = false
[[explorer.tasksets]]
name = "sums"
path = "reasoning_gym:chain_sum"
options = { size = 6 }
repeat_times = 2
rollout_args = { max_tokens = 8 }
[[explorer.tasksets]]
name = "gsm8k"
path = "FOLDER/gsm8k.jsonl"
workflow = "single_turn"
reward_fn = "math_answer"
repeat_times = 2
rollout_args = { max_tokens = 8 }
[explorer.tasksets.format_args]
prompt_key = "question"
[[explorer.eval_tasksets]]
name = "held_out"
path = "FOLDER/gsm8k.jsonl"
workflow = "single_turn"
reward_fn = "math_answer"
repeat_times = 2
rollout_args = { max_tokens = 8 }
format_args = { prompt_key = "question" }
[monitors]
dir = "FOLDER/monitors"
"""


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def test_generated_and_gsm8k_tasks_run_through_the_engine(
    processes, nats_server, run, tmp_path
):
    pytest.importorskip("reasoning_gym")
    write_tiny_model(tmp_path / "model", seed=0)
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, GSM8K)))
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    engine = ["--worker.engine.model", str(tmp_path / "model"), "--worker.engine.dtype", "float32"]
    processes.start("explorer", "coordinator", "@", str(config))
    processes.start("worker", "worker", "--worker.id", "worker", *engine)
    assert await asyncio.to_thread(processes.wait, "explorer", 120) == 0, processes.log("explorer")
    rows = list(read_rows(tmp_path / "monitors" / run / "metrics.jsonl"))
    steps = [row for row in rows if row["kind"] == "metrics"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert row["rollout/finished_task_count"] == 4
        assert row["rollout/failed_runs"] == 0
        assert 0 <= row["rollout/reward/mean"] <= 1
    (held_out,) = [row for row in rows if row["kind"] == "eval/held_out"]
    assert (held_out["step"], held_out["eval/held_out/finished_task_count"]) == (3, 6)
    assert "eval/held_out/reward/mean@2" in held_out
    prompts = set()
    async with TrainerClient(run, nats_server.url, "t") as client:
        for _ in range(3):
            batch = await client.next_batch()
            prompts |= {one.messages[-1]["content"] for one in batch.experiences()}
            assert len(batch) == 8
            await batch.ack()
    assert len(prompts) == 12, "each row of both sets once"
