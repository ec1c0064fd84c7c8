from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from explorer_mq.explorer import Explorer
from explorer_mq.settings import Settings, SyntheticSettings
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_workers.engines.synthetic import SyntheticEngine
from explorer_mq_workers.worker import Worker

WORKFLOWS = Path(__file__).parents[1] / "coordinator" / "workflows.py"


@pytest.fixture
def make_settings(run, tmp_path):
    """Settings of a run with a training set of 40 rows and two eval sets of 3."""

    def taskset(name, rows, **fields):
        path = tmp_path / f"{name}.jsonl"
        lines = [
            json.dumps({"prompt": f"{name} {n}", "answer": str(n), "low": n / rows, "high": 0.5})
            for n in range(rows)
        ]
        path.write_text("\n".join(lines))
        workflow = f"{WORKFLOWS}:good"
        return {"name": name, "path": str(path), "workflow": workflow, "repeat_times": 2, **fields}

    def make(*, evals=False, rows=40, train=None, **explorer):
        eval_sets = [taskset("one", 3), taskset("two", 3)] if evals else []
        return Settings(
            run=run,
            scheduler={"lease_s": 2.0, "max_timeout_s": 5.0},
            worker={"slots": 4, "engine": {"type": "synthetic"}},
            monitors={"dir": tmp_path / "monitors"},
            explorer={
                "tasksets": [taskset("train", rows, **(train or {}))],
                "eval_tasksets": eval_sets,
                "batch_size": 2,
                "sync_timeout_s": 20.0,
                **explorer,
            },
        )

    return make


@pytest.fixture
def start_explorer(connect):
    @asynccontextmanager
    async def start(settings):
        explorer = Explorer(await connect(), settings)
        try:
            await explorer.prepare()
            yield explorer
        finally:
            await explorer.shutdown()

    return start


@pytest.fixture
async def worker(bus, connect, make_settings):
    engine = SyntheticEngine(SyntheticSettings())
    await engine.start()
    serving = Worker(await connect(), engine, make_settings())
    stop = asyncio.Event()
    running = asyncio.create_task(serving.run(stop), name="worker")
    yield serving
    stop.set()
    await running


@pytest.fixture
async def trainer(bus, nats_server, run):
    """Publishes version n after its n-th batch; ``seen`` are the batches it got."""

    seen = []

    async def train():
        async with TrainerClient(run, nats_server.url, "trainer") as client:
            while True:
                batch = await client.next_batch()
                seen.append(batch.batch_id)
                await client.publish_weights({"w": np.full(2, len(seen), np.float32)}, len(seen))
                await batch.ack()

    training = asyncio.create_task(train(), name="trainer")
    yield seen
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
