"""kill -9 of the coordinator right after each named step: the batch ends once, its content unharmed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.steps import VARIABLE, Step
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_schemas.errors import ExplorerError, NotFound, TransientError
from explorer_mq_schemas.tasks import Task
from tests.e2e.processes import Processes

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(90)]

WORKFLOWS = Path(__file__).parents[1] / "coordinator" / "workflows.py"
OPTIONS = {
    "min_wait_num": 6,
    "auto_finalize": True,
}
RULES = [
    "--scheduler.snapshot_results",
    "1",
    "--scheduler.over_rollout.wait_after_min_s",
    "0.3",
    "--scheduler.retry_first_s",
    "0.1",
]


def batch(run):
    """Good tasks, one whose runs fail every second time, one that is left behind."""
    good = [Task(workflow=f"{WORKFLOWS}:good", repeat_times=2) for _ in range(5)]
    flaky = Task(workflow=f"{WORKFLOWS}:flaky", repeat_times=4, raw_task={"key": run})
    hang = Task(workflow=f"{WORKFLOWS}:hang", repeat_times=2)
    return [*good, flaky, hang]


@pytest.fixture
def processes(nats_server, run, tmp_path):
    started = Processes(run, nats_server.url, tmp_path)
    yield started
    started.stop()


async def submit(handle, run):
    """As a caller would: a call that was cut off is made again."""
    while True:
        await handle.wait_ready()
        try:
            return await handle.submit_batch(batch_id=1, tasks=batch(run), **OPTIONS)
        except (NotFound, TransientError):
            continue
        except ExplorerError as error:
            assert "already" in str(error)  # noqa: PT017 - the first call had been carried out
            return None


@pytest.mark.parametrize("step", list(Step))
async def test_batch_ends_once_after_a_kill_at(processes, connect, nats_server, run, step):
    handle = CoordinatorHandle(await connect())
    processes.start("coordinator", "coordinator", *RULES, environ={VARIABLE: step})
    processes.worker("worker", 0.0)
    submitting = asyncio.create_task(submit(handle, run))
    assert await asyncio.to_thread(processes.wait, "coordinator") == -9, "the step was reached"
    processes.start("coordinator", "coordinator", *RULES)
    await submitting
    await handle.wait_ready()
    async with TrainerClient(run, nats_server.url, "t") as client:
        async with asyncio.timeout(30):
            found = await client.next_batch()
        arrays = found.arrays()
        runs = sorted(zip(arrays["task"].tolist(), arrays["run"].tolist(), strict=True))
        good = [(task, number) for task in range(5) for number in range(2)]
        assert runs == [*good, *((5, number) for number in range(4))]
        await found.ack()
        result = await handle.wait_batch(1, seconds=10)
        assert (result.state, result.finished_task_count) == ("finalized", 6)
        await handle.submit_batch(batch_id=2, tasks=batch(run)[:2], auto_finalize=True)
        async with asyncio.timeout(30):
            following = await client.next_batch()
        assert following.batch_id == 2, "batch 1 came once"
        await following.ack()
    status = await handle.status()
    assert (status["queued_slices"], status["leased_slices"]) == (0, 0)
