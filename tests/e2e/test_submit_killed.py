"""A coordinator killed with -9 during submit leaves the whole batch or nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq_schemas.errors import ExplorerError, NotFound, TransientError
from explorer_mq_schemas.tasks import Task

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(90)]

COUNT = 1000


@pytest.fixture
def start(nats_server, run, tmp_path):
    """Start the run's coordinator as a process."""
    children = []

    def begin():
        log = (tmp_path / "coordinator.log").open("ab")
        command = [sys.executable, "-m", "explorer_mq", "coordinator", "--run", run]
        children.append(
            subprocess.Popen([*command, "--nats.url", nats_server.url], stdout=log, stderr=log)
        )
        log.close()
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


async def answer(handle, batch):
    """What a coordinator, as soon as one answers, knows of the batch."""
    while True:
        try:
            found = await handle.wait_batch(batch, seconds=0.2)
            if found.state != "pending":
                return found
        except TransientError:
            continue  # it ended while it was asked
        except NotFound as error:
            if "no coordinator" not in str(error):
                return None


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.04, 0.06, 0.1, 0.2])
async def test_killed_submit_leaves_all_or_nothing(start, connect, run, delay_s):
    bus = await connect()
    child = start()
    await CoordinatorHandle(bus).wait_ready()
    handle = CoordinatorHandle(bus)
    row = {"prompt": "p" * 200, "answer": "a"}
    tasks = [Task(raw_task=row, reward_fn="exact_match", repeat_times=2)] * COUNT
    submit = asyncio.ensure_future(handle.submit_batch(batch_id=1, tasks=tasks))
    done, _ = await asyncio.wait([submit], timeout=delay_s)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if done:
        await submit
    submit.cancel()
    await asyncio.gather(submit, return_exceptions=True)
    start()
    found = await answer(handle, 1)
    info = await bus.api(f"STREAM.INFO.{bus.names.tasks_stream}")
    queued = info["state"]["messages"]
    assert (found is None, queued) in [(True, 0), (False, COUNT)], (found, queued)
    if done:
        assert found is not None
    with pytest.raises(ExplorerError):
        await handle.submit_batch(batch_id=1, tasks=[Task()])
