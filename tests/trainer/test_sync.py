from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time

import numpy as np
import pytest

from explorer_mq import SyncTrainerClient
from explorer_mq_schemas.errors import BusUnavailable, ContractError

SCRIPT = """
import sys
from explorer_mq import SyncTrainerClient
with SyncTrainerClient(sys.argv[1], sys.argv[2]) as client:
    for batch in client.batches():
        print("batch", batch.batch_id, flush=True)
"""

TRAINER = """
import sys, torch
from explorer_mq import SyncTrainerClient

model = torch.nn.Embedding(16, 16)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
with SyncTrainerClient(run=sys.argv[1], url=sys.argv[2]) as client:
    for version, batch in enumerate(client.batches(), start=1):
        data = {name: torch.from_numpy(array) for name, array in batch.padded().items()}
        advantage = data["reward"] - data["reward"].mean()
        logits = model(data["tokens"][:, :-1]).log_softmax(-1)
        logprobs = logits.gather(-1, data["tokens"][:, 1:, None])[..., 0]
        ratio = (logprobs - data["logprobs"][:, 1:]).exp() * data["action_mask"][:, 1:]
        loss = -(ratio * advantage[:, None]).sum() / data["action_mask"].sum()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        client.publish_weights(model.state_dict(), version=version)
        batch.ack()
        if version == 2:
            break
"""


async def start(script, run) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, run.name, run.server.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def in_thread(run, work):
    """Run blocking ``work(client)`` as a plain script would, beside the test's event loop."""

    def script():
        with SyncTrainerClient(run.name, run.server.url, lease_s=2.0) as client:
            return work(client)

    return asyncio.to_thread(script)


async def test_sync_client_reads_publishes_and_acknowledges(run):
    await run.finish_batch(1)
    await run.finish_batch(2)

    def train(client):
        seen = []
        for batch in client.batches():
            seen.append((batch.batch_id, len(batch.experiences()), batch.delivery))
            client.publish_weights({"w": np.ones(2)}, version=len(seen))
            batch.ack()
            if len(seen) == 2:
                return seen, client.policy().version
        return None

    assert await in_thread(run, train) == ([(1, 4, 1), (2, 4, 1)], 2)
    names = run.bus.names
    info = await run.bus.api(f"CONSUMER.INFO.{names.train_stream}.t_trainer")
    assert info["num_ack_pending"] == info["num_pending"] == 0


async def test_sync_client_extends_leases_while_the_script_computes(run):
    await run.finish_batch(1)

    def compute(client):
        batch = next(client.batches())
        threading.Event().wait(3.0)
        batch.ack()

    await in_thread(run, compute)
    names = run.bus.names
    info = await run.bus.api(f"CONSUMER.INFO.{names.train_stream}.t_trainer")
    assert info["num_redelivered"] == 0


async def test_sync_client_raises_what_its_background_thread_met(run):
    await run.publisher.publish_wait(run.bus.names.train("1", 0), b"broken")
    with pytest.raises(ContractError, match="TrainBatchManifest"):
        await in_thread(run, lambda client: next(client.batches()))


async def test_sync_client_closes_in_under_a_second_and_leaves_no_thread(run):
    def idle(client):
        client.close()
        began = time.monotonic()
        client.connect()
        client.close()
        with pytest.raises(BusUnavailable, match="not connected"):
            next(client.batches())
        return time.monotonic() - began

    assert await in_thread(run, idle) < 1.0
    assert not [t for t in threading.enumerate() if t.name.startswith("trainer ")]


def test_sync_client_names_the_server_that_does_not_answer():
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"):
        SyncTrainerClient("r", "nats://127.0.0.1:1").connect()
    assert not [t for t in threading.enumerate() if t.name.startswith("trainer ")]


async def test_script_ends_at_once_on_an_interrupt_and_hands_its_batch_back(run):
    await run.finish_batch(1)
    script = await start(SCRIPT, run)
    assert await script.stdout.readline() == b"batch 1\n"
    began = time.monotonic()
    script.send_signal(signal.SIGINT)
    _, errors = await script.communicate()
    assert time.monotonic() - began < 1.5
    assert script.returncode == -signal.SIGINT
    assert errors.strip().endswith(b"KeyboardInterrupt")
    assert b"Task was destroyed" not in errors
    async with run.client() as client:
        assert (await client.next_batch()).delivery == 2


async def test_killed_script_leaves_its_batch_to_the_next(run):
    await run.finish_batch(1)
    script = await start(SCRIPT, run)
    assert await script.stdout.readline() == b"batch 1\n"
    script.kill()
    await script.communicate()
    async with run.client() as client:
        again = await client.next_batch()
        assert (again.batch_id, again.delivery) == (1, 2)
        await again.ack()


async def test_trainer_script_of_the_readme_works(run):
    await run.finish_batch(1)
    await run.finish_batch(2)
    script = await start(TRAINER, run)
    _, errors = await script.communicate()
    assert script.returncode == 0, errors.decode()
    async with run.client() as client:
        assert (await client.policy()).version == 2
