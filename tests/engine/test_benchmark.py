"""``coordinator --mode bench`` over three checkpoints of the tiny model, on real vLLM workers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from explorer_mq.demo.model import write_tiny_model
from tests.e2e.processes import Processes

pytestmark = [pytest.mark.engine, pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


def write_checkpoints(folder):
    """Three models of random weights, sharpened: each ends its answers at another length."""
    from safetensors.numpy import load_file, save_file

    for step in (2, 10, 30):
        path = folder / f"global_step_{step}"
        write_tiny_model(path, seed=step)
        weights = load_file(path / "model.safetensors")
        weights["lm_head.weight"] = weights["lm_head.weight"] * 10
        save_file(weights, path / "model.safetensors")


def test_three_checkpoints_make_three_rows(processes, nats_server, run, tmp_path):
    model = tmp_path / "model"
    write_tiny_model(model, seed=0)
    write_checkpoints(tmp_path / "checkpoints")
    rows = [json.dumps({"prompt": f"sort {n}", "answer": str(n)}) for n in range(100, 116)]
    (tmp_path / "sort.jsonl").write_text("\n".join(rows))
    config = tmp_path / "bench.toml"
    config.write_text(
        f"""
[explorer]
checkpoint_dir = "{tmp_path / "checkpoints"}"
eval_on_startup = false
[[explorer.eval_tasksets]]
name = "sort"
path = "{tmp_path / "sort.jsonl"}"
workflow = "single_turn"
reward_fn = "partial_match"
repeat_times = 4
rollout_args = {{ max_tokens = 100, seed = 1 }}
[monitors]
dir = "{tmp_path / "monitors"}"
"""
    )
    engine = ["--worker.engine.model", str(model), "--worker.engine.dtype", "float32"]
    processes.start("worker", "worker", "--worker.id", "worker", *engine)
    command = [sys.executable, "-m", "explorer_mq", "coordinator", "--mode", "bench", "--json"]
    done = subprocess.run(
        [*command, "@", str(config), *processes.common],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["checkpoint"], one["policy_version"]) for one in scores] == [
        ("global_step_2", 1),
        ("global_step_10", 2),
        ("global_step_30", 3),
    ]
    lengths = [one["metrics"]["bench/sort/response_length/mean@4"] for one in scores]
    assert len(set(lengths)) == 3, lengths
    assert all(one["metrics"]["bench/sort/finished_task_count"] == 16 for one in scores)
