"""Restarts: snapshot and tail give back exactly what was there, fast, however old the run is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from explorer_mq.bus.journal import Journal
from explorer_mq.bus.publisher import OutMessage, publish_atomic
from explorer_mq.bus.state import RunState
from explorer_mq_schemas.results import RESULT_HEADER, Result
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_schemas.tasks import Task
from explorer_mq_schemas.timeouts import AttemptTimeouts

WORKFLOWS = Path(__file__).with_name("workflows.py")


def tasks(count, repeat=2, name="good", **fields):
    workflow = f"{WORKFLOWS}:{name}"
    return [Task(workflow=workflow, repeat_times=repeat, **fields) for _ in range(count)]


async def report_all(bus, batch, numbers, repeat):
    """Results as workers would publish them, without the workers."""
    runs = tuple(range(repeat))
    header = Result(
        worker="w",
        attempt=1,
        seconds=0.5,
        run_ids=runs,
        completed=runs,
        metrics=({"reward": 1.0},) * repeat,
        experiences=repeat,
        bytes=1,
    ).to_header()
    for start in range(0, len(numbers), 1000):
        messages = [
            OutMessage(bus.names.result(SliceKey(batch, number, 0)), b"x", {RESULT_HEADER: header})
            for number in numbers[start : start + 1000]
        ]
        await publish_atomic(bus, messages)


async def settled(coordinator, batch, count):
    live = coordinator.scheduler.batches.find(batch)
    async with asyncio.timeout(60):
        while live.state.settled < count:
            await live.changed.wait()


async def journalled(bus):
    info = await bus.api(f"STREAM.INFO.{bus.names.journal_stream}")
    return info["state"]["messages"]


async def test_snapshot_and_tail_give_back_the_state(bus, start_coordinator, start_worker):
    async with start_coordinator() as coordinator:
        async with start_worker():
            for batch in range(3):
                await coordinator.submit_batch(batch_id=batch, tasks=tasks(4))
                await coordinator.finalize_train_batch(batch, timeout=10)
        await coordinator.submit_batch(batch_id=3, tasks=tasks(10))
        await report_all(bus, "3", range(4), 2)
        await settled(coordinator, 3, 4)
        await coordinator.scheduler.take_snapshot()
        assert await journalled(bus) == 1
        await coordinator.submit_batch(batch_id=4, tasks=tasks(2))
        await report_all(bus, "3", range(4, 6), 2)
        await settled(coordinator, 3, 6)
        before = coordinator.scheduler.digest()
    for _ in range(2):
        async with start_coordinator() as coordinator:
            assert coordinator.scheduler.digest() == before
    async with start_coordinator() as coordinator, start_worker():
        for batch in (3, 4):
            await coordinator.finalize_train_batch(batch, timeout=10)
        with pytest.raises(ValueError, match="finalized already"):
            await coordinator.submit_batch(batch_id=0, tasks=tasks(1))


async def test_old_snapshots_leave_nothing_behind(bus, start_coordinator):
    async with start_coordinator() as coordinator:
        for _ in range(3):
            await coordinator.scheduler.take_snapshot()
        info = await bus.api(
            f"STREAM.INFO.{bus.names.state_stream}",
            {"subjects_filter": f"{bus.names.state('snapshot')}.>"},
        )
        assert len(info["state"]["subjects"]) == 1


async def test_snapshots_are_taken_as_results_come(bus, start_coordinator, start_worker):
    async with start_coordinator(snapshot_results=20) as coordinator, start_worker():
        for batch in range(6):
            await coordinator.submit_batch(batch_id=batch, tasks=tasks(20, repeat=1))
            await coordinator.finalize_train_batch(batch, timeout=10)
    _, entries = await Journal(bus).replay()
    assert len(entries) < 24


async def test_retired_ids_stay_used(bus, start_coordinator, monkeypatch):
    monkeypatch.setattr("explorer_mq.batches.REMEMBERED_CLOSED", 2)
    async with start_coordinator() as coordinator:
        for batch in range(5):
            await coordinator.submit_batch(batch_id=batch, tasks=[])
            await coordinator.finalize_train_batch(batch, timeout=5)
        await coordinator.scheduler.take_snapshot()
    async with start_coordinator() as coordinator:
        assert (await coordinator.get_batch_result(4)).state == "finalized"
        with pytest.raises(KeyError, match="retired long ago"):
            await coordinator.get_batch_result(0)
        with pytest.raises(ValueError, match="used once"):
            await coordinator.submit_batch(batch_id=0, tasks=[])


async def fill(coordinator, bus, batches, size, left_open):
    """``batches`` of ``size`` slices each; the last has ``left_open`` without a result."""
    for batch in range(batches):
        await coordinator.submit_batch(batch_id=batch, tasks=tasks(size, repeat=1))
        done = size - left_open if batch == batches - 1 else size
        await report_all(bus, str(batch), range(done), 1)
        if done == size:
            await coordinator.finalize_train_batch(batch, timeout=60)
        else:
            await settled(coordinator, batch, done)


@pytest.mark.parametrize(("batches", "size"), [(1, 12_000), (12, 1000)])
async def test_large_state_comes_back_whole(bus, start_coordinator, batches, size):
    async with start_coordinator(max_timeout_s=3600) as coordinator:
        await fill(coordinator, bus, batches, size, left_open=500)
        before = coordinator.scheduler.digest()
    async with start_coordinator(max_timeout_s=3600) as coordinator:
        assert coordinator.scheduler.digest() == before


async def test_dynamic_timeout_is_learned_published_and_remembered(
    bus, start_coordinator, start_worker
):
    """Decision 12."""
    rules = {"dynamic_timeout": {"enable": True, "ratio": 4.0, "warmup_min_steps": 2}}
    async with start_coordinator(**rules) as coordinator:
        for batch in range(2):
            assert coordinator.scheduler.dynamic_timeout() == 5.0
            assert coordinator.scheduler.dynamic_timeout(99.0) == 99.0
            await coordinator.submit_batch(batch_id=batch, tasks=tasks(3))
            await report_all(bus, str(batch), range(3), 2)
            await coordinator.finalize_train_batch(batch, timeout=10)
        assert coordinator.scheduler.dynamic_timeout() == pytest.approx(2.0)
        async with RunState(bus).follow("timeouts") as follower, asyncio.timeout(5):
            while not (
                found := AttemptTimeouts.decode((await follower.next_batch())[-1].data)
            ).train:
                continue
        assert found.train == {2: 0.5}
    async with start_coordinator(**rules) as coordinator:
        assert coordinator.scheduler.dynamic_timeout() == pytest.approx(2.0)
    async with start_coordinator() as coordinator:
        assert coordinator.scheduler.dynamic_timeout() == 5.0
