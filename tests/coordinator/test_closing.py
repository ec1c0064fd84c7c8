"""How batches close: over-rollout, enough tasks, partial results, aborts, late and used ids."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from explorer_mq.bus.follower import Follower
from explorer_mq.coordinator import RolloutCoordinator
from explorer_mq.core.closing import min_wait_num
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_schemas.batches import TrainBatchManifest
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.codec import pack
from explorer_mq_schemas.errors import BatchTimeout, ContractError, NotFound
from explorer_mq_schemas.events import Event
from explorer_mq_schemas.tasks import Task
from tests.coordinator.workflows import sample

WORKFLOWS = Path(__file__).with_name("workflows.py")


def tasks(count, repeat=2, name="good", **fields):
    workflow = f"{WORKFLOWS}:{name}"
    return [Task(workflow=workflow, repeat_times=repeat, **fields) for _ in range(count)]


async def manifests(bus):
    async with Follower(bus, bus.names.train_stream, [bus.names.manifests()]) as follower:
        return [TrainBatchManifest.decode(m.data) for m in await follower.catch_up()]


async def runs_completed(coordinator, batch, count):
    live = coordinator.scheduler.batches.find(batch)
    async with asyncio.timeout(10):
        while live.state.completed_runs < count:
            await live.changed.wait()


@pytest.mark.parametrize(
    ("size", "ratio", "wanted"),
    [(10, 0.7, 3), (10, 0.0, None), (8, 0.25, 6), (3, 0.1, 3), (10, 0.99, 1), (1, 0.5, 1)],
)
def test_share_that_may_be_left_out_is_counted_exactly(size, ratio, wanted):
    """Decision 10: floats would ask for 4 of 10 at a ratio of 0.7."""
    assert min_wait_num(size, ratio) == wanted


async def test_stragglers_are_left_behind_and_their_slots_freed(
    bus, start_coordinator, start_worker
):
    """Decision 8: a cooperative cancel; the workers go on without a restart."""
    rules = {"over_rollout": {"wait_after_min_s": 0.2}, "max_timeout_s": 60}
    async with start_coordinator(**rules) as coordinator, start_worker() as worker:
        await coordinator.submit_batch(
            batch_id=1, tasks=[*tasks(3), *tasks(2, name="hang")], min_wait_num=3
        )
        result = await coordinator.finalize_train_batch(1, timeout=30)
        assert result.finished_task_count == 3
        await coordinator.submit_batch(batch_id=2, tasks=tasks(4))
        await coordinator.finalize_train_batch(2, timeout=5)
        async with asyncio.timeout(5):
            while worker.busy_slots:
                await worker.changed.wait()
    assert [manifest.completed_runs for manifest in await manifests(bus)] == [6, 8]


@pytest.mark.parametrize(("partial", "runs"), [(True, 5), (False, 4)])
async def test_completed_runs_of_unfinished_tasks_are_delivered_when_asked_for(
    bus, start_coordinator, start_worker, partial, runs
):
    """Decision 7: ``return_partial_tasks`` is real."""
    rules = {
        "over_rollout": {"wait_after_min_s": 1.0, "return_partial_tasks": partial},
        "max_repeat_times_per_runner": 1,
        "max_timeout_s": 60,
    }
    async with start_coordinator(**rules) as coordinator, start_worker():
        half = tasks(1, name="first_run_only", raw_task={"key": bus.names.run})
        await coordinator.submit_batch(batch_id=1, tasks=[*half, *tasks(2)], min_wait_num=2)
        await runs_completed(coordinator, 1, 5)
        result = await coordinator.finalize_train_batch(1, timeout=30)
        assert result.completed_runs == runs
        assert result.finished_task_count == (3 if partial else 2)


async def test_too_few_tasks_are_a_time_out_and_cost_nothing(bus, start_coordinator, start_worker):
    """Decisions 5 and 9: one task is not three; finalize may be called again."""
    async with start_coordinator(max_timeout_s=60) as coordinator, start_worker():
        mixed = [*tasks(1), *tasks(3, name="hang")]
        await coordinator.submit_batch(batch_id=1, tasks=mixed, min_wait_num=3)
        await runs_completed(coordinator, 1, 2)
        for _ in range(2):
            with pytest.raises(BatchTimeout, match="1 of 4 tasks settled"):
                await coordinator.finalize_train_batch(1, timeout=0.1)
        result = await coordinator.abort_batch(1, reason="enough", keep_partial_results=True)
        assert (result.state, result.finished_task_count, result.completed_runs) == (
            "aborted",
            1,
            2,
        )
        assert await coordinator.get_batch_result(1) == result
    (manifest,) = await manifests(bus)
    assert (manifest.batch, manifest.completed_runs) == (1, 2)


async def test_eval_takes_what_there_is_at_its_deadline(bus, start_coordinator, start_worker):
    async with start_coordinator(max_timeout_s=60) as coordinator, start_worker():
        mixed = [*tasks(1, is_eval=True), *tasks(1, name="hang", is_eval=True)]
        await coordinator.submit_batch(batch_id="1/set", tasks=mixed, batch_type="eval")
        await runs_completed(coordinator, "1/set", 2)
        result = await coordinator.finalize_eval_batch("1/set", timeout=0.1)
    assert result.metrics["eval/set/finished_task_count"] == 1


async def test_late_results_are_counted_and_removed(bus, start_coordinator, start_worker):
    """A result for an aborted batch is no error; it leaves the stream."""
    async with start_coordinator() as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=tasks(2))
        await runs_completed(coordinator, 1, 4)
        result = await coordinator.abort_batch(1, reason="no")
        live = coordinator.scheduler.batches.remembered(1)
        async with asyncio.timeout(5):
            while live.state.late:
                await live.changed.wait()
        assert result.finished_task_count == 0
        assert (await coordinator.get_batch_result(1)).late_results == 2
        stream, names = bus.names.results_stream, bus.names
        async with Follower(bus, stream, [names.batch_results("1")]) as follower:
            assert follower.backlog == 0


async def test_closed_ids_answer_with_their_result_and_are_not_used_again(
    bus, start_coordinator, start_worker
):
    """Decision 6."""
    async with start_coordinator() as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=tasks(1))
        result = await coordinator.finalize_train_batch(1, timeout=10)
        assert await coordinator.get_batch_result(1) == result
        with pytest.raises(KeyError, match="not registered"):
            await coordinator.finalize_train_batch(1)
        with pytest.raises(ValueError, match="finalized already"):
            await coordinator.submit_batch(batch_id=1, tasks=tasks(1))
        with pytest.raises(NotFound, match="not registered"):
            await coordinator.get_batch_result("never seen")
        assert await coordinator.abort_batch("never seen", reason="x") is None


async def test_experiences_of_no_batch_reach_the_trainers(
    bus, start_coordinator, connect, nats_server, run
):
    async with start_coordinator() as coordinator:
        assert await coordinator.process_experiences([]) == {}
        with pytest.raises(ContractError):
            await coordinator.process_experiences([b"no experiences"])
        payloads = [pack([sample(1.0), sample(0.0)]), pack([sample(0.5)])]
        metrics = await coordinator.process_experiences(payloads)
        assert metrics == {"experience_pipeline/experience_count": 3.0}
    async with TrainerClient(run, nats_server.url, "t") as client:
        batch = await client.next_batch()
        assert batch.arrays()["reward"].tolist() == [1.0, 0.0, 0.5]
        await batch.ack()
    unprepared = RolloutCoordinator(bus, coordinator.scheduler.settings)
    with pytest.raises(RuntimeError, match="not prepared"):
        await unprepared.process_experiences([])


def _refuse(data):
    raise ContractError("not heard")


async def test_worker_that_does_not_drop_a_closed_batch_is_fenced(
    bus, start_coordinator, start_worker, monkeypatch
):
    events = []
    heard = asyncio.Event()

    async def hear(message):
        events.append(Event.decode(message.data))
        heard.set()

    told = await bus.subscribe(bus.names.all_events, hear)
    async with start_coordinator(cancel_grace_s=0.3, max_timeout_s=60) as coordinator:
        monkeypatch.setattr(Cancel, "decode", _refuse)  # workers ignore what they cannot read
        async with start_worker():
            await coordinator.submit_batch(batch_id=1, tasks=tasks(1, name="hang"))
            async with asyncio.timeout(10):
                while not coordinator.scheduler.get_all_state():
                    await coordinator.roster.changed.wait()
            await coordinator.abort_batch(1, reason="no")
            async with asyncio.timeout(5):
                await heard.wait()
    await told.unsubscribe()
    assert events[0].kind == "worker_fenced"
    assert "did not drop the closed batch 1 within 0.3 s" in events[0].text


async def test_a_waiter_who_leaves_does_not_leave_the_others_waiting(
    bus, start_coordinator, start_worker
):
    async with start_coordinator() as coordinator:
        await coordinator.submit_batch(batch_id=1, tasks=tasks(1))
        stays = asyncio.create_task(coordinator.finalize_train_batch(1, timeout=20))
        leaves = asyncio.create_task(coordinator.finalize_train_batch(1, timeout=20))
        await asyncio.wait([stays, leaves], timeout=0.05)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        async with start_worker():
            assert (await asyncio.wait_for(stays, 10)).completed_runs == 2
