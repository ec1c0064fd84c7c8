from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import numpy as np
import pytest
from safetensors.numpy import load

from explorer_mq.bus import topology
from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.objects import get_object
from explorer_mq.bus.results import ResultLog
from explorer_mq.trainer import payloads
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_schemas.batches import Parts, TrainBatchManifest
from explorer_mq_schemas.errors import (
    BusUnavailable,
    ConfigError,
    ContractError,
    InvalidRequest,
    NotFound,
)
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.policy import PolicyAnnouncement


async def consumer(run, trainer: str = "trainer") -> dict:
    names = run.bus.names
    return await run.bus.api(
        f"CONSUMER.INFO.{names.train_stream}.{names.trainer_consumer(trainer)}"
    )


@contextlib.asynccontextmanager
async def crashing(client: TrainerClient):
    """Cut the connection without handing anything back, as kill -9 would."""
    await client.connect()
    connection = client._connected
    bus = await anext(_buses(client))
    try:
        yield client
    finally:
        for task in client._tasks:
            task.cancel()
        await asyncio.gather(*client._tasks, return_exceptions=True)
        await bus.close()
        client._connected = None
        connection.pop_all()


async def _buses(client: TrainerClient):
    yield client._policy._bus


async def test_batches_come_in_order_with_all_their_content(run):
    for batch in (1, "2/x y", 3):
        await run.finish_batch(batch, tasks=3, group=2)
    async with run.client() as client:
        for wanted in (1, "2/x y", 3):
            batch = await client.next_batch()
            assert batch.batch_id == wanted
            assert batch.delivery == 1
            arrays = batch.arrays()
            assert arrays["task"].tolist() == [0, 0, 1, 1, 2, 2]
            assert arrays["reward"].tolist() == [0, 1] * 3
            assert [str(e.eid.batch) for e in batch.experiences()] == [str(wanted)] * 6
            await batch.ack()
            await batch.ack()
        info = await consumer(run)
        assert info["num_ack_pending"] == 0
        assert info["num_pending"] == 0


async def test_two_trainers_read_the_run_independently(run):
    await run.finish_batch(1)
    await run.finish_batch(2)
    async with run.client("a") as a, run.client("b c") as b:
        async for batch in a.batches():
            await batch.ack()
            if batch.batch_id == 2:
                break
        other = await b.next_batch()
        assert (other.batch_id, other.delivery) == (1, 1)


async def test_batch_waits_for_the_trainer_that_waits_for_it(run):
    async with run.client() as client:
        waiting = asyncio.create_task(client.next_batch())
        await run.finish_batch(7)
        assert (await waiting).batch_id == 7


async def test_crashed_trainers_batches_come_again_at_once_in_order_and_equal(run):
    for batch in (1, 2, 3, 4):
        await run.finish_batch(batch)
    async with crashing(run.client(lease_s=600, prefetch=2)) as client:
        first = await client.next_batch()
        await first.ack()
        second = await client.next_batch()
    began = time.monotonic()
    async with run.client(lease_s=600) as client:
        again = await client.next_batch()
        assert (again.batch_id, again.delivery > 1) == (2, True)
        assert [bytes(p) for p in again.payloads] == [bytes(p) for p in second.payloads]
        assert again.manifest == second.manifest
        assert (await client.next_batch()).batch_id == 3
        assert (await client.next_batch()).batch_id == 4
    assert time.monotonic() - began < 5


async def test_closed_trainer_hands_its_batches_back(run):
    await run.finish_batch(1)
    async with run.client(lease_s=600) as client:
        batch = await client.next_batch()
    with pytest.raises(BusUnavailable, match="handed back"):
        await batch.ack()
    with pytest.raises(BusUnavailable, match="not connected"):
        await client.next_batch()
    async with run.client(lease_s=600) as client:
        assert (await client.next_batch()).batch_id == 1


async def test_lease_of_a_batch_that_is_out_never_runs_out(run):
    await run.finish_batch(1)
    await run.finish_batch(2)
    async with run.client(lease_s=1.0) as client:
        batch = await client.next_batch()
        await client.next_batch()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await client.next_batch()
        assert (await consumer(run))["num_redelivered"] == 0
        await batch.ack()


async def test_repeated_delivery_is_dropped_when_the_loop_was_blocked_beyond_the_lease(run):
    await run.finish_batch(1)
    async with run.client(lease_s=1.0) as client:
        batch = await client.next_batch()
        time.sleep(2.5)  # noqa: ASYNC251 - this is the fault
        await batch.ack()
        await run.finish_batch(2)
        assert (await client.next_batch()).batch_id == 2
        assert (await consumer(run))["num_ack_pending"] == 1


async def test_at_most_prefetch_batches_are_leased_ahead(run):
    for batch in range(6):
        await run.finish_batch(batch, tasks=1, group=1)
    async with run.client(prefetch=2) as client:
        await client.next_batch()
        while len(client._ready) < 2:
            client._changed.clear()
            await client._changed.wait()
        info = await consumer(run)
        assert info["num_ack_pending"] == 3
        assert len(client._ready) == 2


async def test_batches_may_be_held_beyond_the_prefetch(run):
    for batch in range(5):
        await run.finish_batch(batch, tasks=1, group=1)
    async with run.client(prefetch=1) as client:
        held = [await client.next_batch() for _ in range(5)]
        for batch in reversed(held):
            await batch.ack()
        assert (await consumer(run))["num_ack_pending"] == 0


async def test_thousand_slices_are_one_read(run, monkeypatch):
    await run.finish_batch("big", tasks=1000, group=2)
    made = []

    class Counted(Follower):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(payloads, "Follower", Counted)
    async with run.client() as client:
        batch = await client.next_batch()
        arrays = batch.arrays()
    assert len(made) == 1
    assert len(batch.payloads) == 1000
    np.testing.assert_array_equal(arrays["task"], np.repeat(np.arange(1000), 2))


async def test_large_payload_comes_through_an_object(run):
    filler = run.bus.max_payload_bytes // 4
    await run.finish_batch(1, tasks=2, group=2, filler=filler)
    async with run.client() as client:
        arrays = (await client.next_batch()).arrays()
    assert len(arrays["tokens"]) == 2 * (2 + 3 + 2 * filler)


async def test_other_results_of_the_batch_are_left_out(run):
    """A late result, or one of another run index, is stored but not in the manifest."""
    await run.finish_batch(1, tasks=4)
    full = await run.publish_manifest(1, 4, 2)
    names = run.bus.names
    seqs = (full.parts.seq[2], full.parts.seq[0])
    part = full.model_copy(
        update={
            "batch": 1,
            "experiences": 4,
            "parts": Parts(stream=names.results_stream, seq=seqs, experiences=(2, 2)),
        }
    )
    await run.publisher.publish_wait(names.train("1", 0), part.encode())
    async with run.client() as client:
        for _ in range(2):
            await client.next_batch()
        batch = await client.next_batch()
    assert batch.arrays()["task"].tolist() == [2, 2, 0, 0]


async def test_batch_without_parts_is_delivered_empty(run):
    names = run.bus.names
    manifest = TrainBatchManifest(
        run=run.name,
        batch=1,
        tasks=1,
        finished_task_count=0,
        runs=1,
        completed_runs=0,
        experiences=0,
        parts=Parts(stream=names.results_stream),
    )
    await run.publisher.publish_wait(names.train("1", 0), manifest.encode())
    async with run.client() as client:
        batch = await client.next_batch()
        assert len(batch) == 0
        await batch.ack()


@pytest.mark.parametrize("victims", [(0,), (3,), (0, 1, 2, 3)])
async def test_missing_part_is_an_error_that_names_the_batch(run, victims):
    manifest = await run.finish_batch("m", tasks=4)
    results = ResultLog(run.bus, run.publisher)
    for victim in victims:
        await results.delete(manifest.parts.seq[victim])
    async with run.client() as client:
        with pytest.raises(NotFound, match=rf"batch m of run .* gone, {len(victims)} of 4"):
            await client.next_batch()
        with pytest.raises(NotFound):
            await client.next_batch()
    assert (await consumer(run))["num_ack_pending"] in (0, 1)


async def test_unreadable_batches_are_passed_over_when_asked(run, caplog):
    manifest = await run.finish_batch(1)
    await ResultLog(run.bus, run.publisher).delete(manifest.parts.seq[1])
    await run.publisher.publish_wait(run.bus.names.train("2", 0), b"not json")
    await run.finish_batch(3)
    with caplog.at_level(logging.ERROR):
        async with run.client(unreadable="skip") as client:
            assert (await client.next_batch()).batch_id == 3
    assert "batch 1 of run" in caplog.text
    assert "not JSON" in caplog.text


async def test_malformed_manifest_surfaces_in_the_loop(run):
    await run.publisher.publish_wait(run.bus.names.train("2", 0), b"not json")
    async with run.client() as client:
        with pytest.raises(ContractError, match="TrainBatchManifest"):
            await client.next_batch()


async def test_deleted_position_is_an_error_not_a_silent_restart(run):
    names = run.bus.names
    delete = f"CONSUMER.DELETE.{names.train_stream}.{names.trainer_consumer('trainer')}"
    async with run.client() as client:
        waiting = asyncio.create_task(client.next_batch())
        await run.bus.api(delete)
        with pytest.raises(NotFound, match="lost its position"):
            await waiting


async def test_server_restart_while_waiting_and_holding_loses_nothing(run):
    await run.finish_batch(1)
    async with run.client(lease_s=5) as client:
        held = await client.next_batch()
        waiting = asyncio.create_task(client.next_batch())
        back = asyncio.Event()
        run.bus.on_reconnect(back.set)
        run.server.restart()
        await held.ack()
        await back.wait()
        await run.finish_batch(2)
        async with asyncio.timeout(15):
            assert (await waiting).batch_id == 2
        info = await consumer(run)
        assert info["num_ack_pending"] == 1


async def test_close_returns_in_under_a_second_while_idle(run):
    client = run.client()
    await client.connect()
    waiting = asyncio.create_task(client.next_batch())
    while (await consumer(run))["num_waiting"] == 0:
        pass
    began = time.monotonic()
    await client.close()
    assert time.monotonic() - began < 1.0
    with pytest.raises(BusUnavailable, match="not connected"):
        await waiting
    await client.close()


async def test_cancelled_wait_loses_no_batch(run):
    async with run.client() as client:
        waiting = asyncio.create_task(client.next_batch())
        await consumer(run)
        waiting.cancel()
        await run.finish_batch(1)
        assert (await client.next_batch()).batch_id == 1


async def test_client_waits_for_the_run_to_be_set_up(server):
    name = new_id("late")
    client = TrainerClient(name, server.url)
    connecting = asyncio.create_task(client.connect())
    async with await Bus.connect(name, BusOptions(url=server.url)) as bus:
        await bus.api("INFO")
        assert not connecting.done()
        await topology.ensure(bus)
        async with asyncio.timeout(5):
            await connecting
        await client.close()
        await topology.remove(bus)


async def test_client_names_the_run_that_never_appears(server):
    with pytest.raises(NotFound, match="run nobody does not exist"):
        await TrainerClient("nobody", server.url, setup_timeout_s=0.2).connect()


def test_client_refuses_bad_arguments():
    with pytest.raises(ConfigError, match="prefetch"):
        TrainerClient(prefetch=0)
    with pytest.raises(InvalidRequest, match="empty"):
        TrainerClient(name="")
    with pytest.raises(ConfigError, match="run"):
        TrainerClient("a b")


async def weights_subjects(run) -> set[str]:
    stream = run.bus.names.weights_stream
    info = await run.bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
    return {subject.split(".")[3] for subject in info["state"].get("subjects") or {}}


async def test_published_weights_are_announced_and_readable(run):
    weights = {"w": np.arange(300_000, dtype=np.float32), "b": np.ones(3, np.float16)}
    async with run.client() as client:
        assert await client.policy() is None
        announced = await client.publish_weights(weights, 1)
        assert await client.policy() == announced
    assert isinstance(announced, PolicyAnnouncement)
    assert announced.object is not None
    assert announced.object.chunks == 3
    stored = load(bytes(await get_object(run.bus, run.bus.names.weights_stream, announced.object)))
    np.testing.assert_array_equal(stored["w"], weights["w"])


async def test_only_the_newest_two_versions_are_kept(run):
    async with run.client() as client:
        for version in (1, 2, 5, 7):
            await client.publish_weights({"w": np.full(4, version, np.float32)}, version)
    assert await weights_subjects(run) == {"5", "7"}


async def test_version_must_grow(run):
    async with run.client() as client:
        await client.publish_weights({"w": np.ones(1)}, 3)
        for version in (3, 2):
            with pytest.raises(InvalidRequest, match="version 3 is announced already"):
                await client.publish_weights({"w": np.zeros(1)}, version)
        assert (await client.policy()).version == 3


async def test_weights_that_are_not_finite_change_nothing(run):
    async with run.client() as client:
        with pytest.raises(ContractError, match="w holds NaN"):
            await client.publish_weights({"w": np.array([np.nan])}, 1)
        assert await client.policy() is None
    assert await weights_subjects(run) == set()


async def test_leftovers_of_a_crashed_upload_do_not_mix_with_the_next(run):
    stale = run.bus.names.weights(1)
    for chunk in range(4):
        await run.publisher.publish_wait(f"{stale}.{chunk}", b"stale")
    async with run.client() as client:
        announced = await client.publish_weights({"w": np.ones(3)}, 1)
    payload = await get_object(run.bus, run.bus.names.weights_stream, announced.object)
    np.testing.assert_array_equal(load(bytes(payload))["w"], np.ones(3))


async def test_checkpoint_directory_is_announced_by_its_path(run, tmp_path):
    async with run.client() as client:
        with pytest.raises(InvalidRequest, match="safetensors"):
            await client.publish_weights(tmp_path, 1)
        (tmp_path / "model.safetensors").write_bytes(b"")
        announced = await client.publish_weights(tmp_path, 1)
    assert (announced.channel, announced.path) == ("path", str(tmp_path))
