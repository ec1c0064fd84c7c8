"""Batches from submit to the trainer, through every way they can go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from explorer_mq.bus.follower import Follower
from explorer_mq.bus.journal import Journal
from explorer_mq.bus.state import RunState
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_schemas.batches import TrainBatchManifest
from explorer_mq_schemas.errors import (
    BatchTimeout,
    FencedError,
    InvalidRequest,
    NotFound,
    TransientError,
)
from explorer_mq_schemas.results import DeadLetter
from explorer_mq_schemas.tasks import Task

WORKFLOWS = Path(__file__).with_name("workflows.py")


def workflow(name):
    return f"{WORKFLOWS}:{name}"


def tasks(count, repeat=4, name="good", **fields):
    return [Task(workflow=workflow(name), repeat_times=repeat, **fields) for _ in range(count)]


async def manifests(bus):
    stream = bus.names.train_stream
    async with Follower(bus, stream, [bus.names.manifests()]) as follower:
        return [TrainBatchManifest.decode(m.data) for m in await follower.catch_up()]


async def dead_letters(bus):
    async with Follower(bus, bus.names.dead_stream, [bus.names.all_dead]) as follower:
        return [DeadLetter.decode(m.data) for m in await follower.catch_up()]


async def runs_of(batch):
    arrays = batch.arrays()
    return sorted(zip(arrays["task"].tolist(), arrays["run"].tolist(), strict=True))


async def test_train_batch_reaches_the_trainer_once(
    bus, start_coordinator, start_worker, nats_server, run
):
    async with start_coordinator() as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=tasks(10))
        result = await coordinator.finalize_train_batch(1, timeout=10)
        assert result.finished_task_count == 10
        assert result.metrics["rollout/m/mean"] == 1.0
        assert await coordinator.get_batch_result(1) == result
        with pytest.raises(KeyError, match="not registered"):
            await coordinator.finalize_train_batch(1)
    async with TrainerClient(run, nats_server.url, "t") as client:
        batch = await client.next_batch()
        assert await runs_of(batch) == [(task, r) for task in range(10) for r in range(4)]
        await batch.ack()


async def test_eval_batch_yields_metrics_only(bus, start_coordinator, start_worker):
    async with start_coordinator() as coordinator, start_worker():
        evals = [task.model_copy(update={"is_eval": True}) for task in tasks(3)]
        await coordinator.submit_batch(batch_id="5/some set", tasks=evals, batch_type="eval")
        with pytest.raises(ValueError, match="is eval, expected train"):
            await coordinator.finalize_train_batch("5/some set")
        result = await coordinator.finalize_eval_batch("5/some set")
    assert result.metrics["eval/some set/m/mean@4"] == 1.0
    assert result.metrics["eval/some set/finished_task_count"] == 3
    assert await manifests(bus) == []


async def test_groups_are_cut_into_slices(bus, start_coordinator, start_worker):
    async with start_coordinator(max_repeat_times_per_runner=3) as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=tasks(2, repeat=8))
        await coordinator.finalize_train_batch(1, timeout=10)
    (manifest,) = await manifests(bus)
    assert manifest.parts.experiences == (3, 3, 2, 3, 3, 2)


async def test_only_missing_runs_are_retried(bus, start_coordinator, start_worker):
    async with start_coordinator() as coordinator, start_worker():
        one = tasks(1, repeat=4, name="flaky", raw_task={"key": bus.names.run})
        await coordinator.submit_batch(batch_id=1, tasks=one)
        result = await coordinator.finalize_train_batch(1, timeout=20)
    (manifest,) = await manifests(bus)
    assert (manifest.completed_runs, manifest.experiences) == (4, 4)
    assert manifest.parts.experiences == (2, 1, 1)
    assert result.metrics["rollout/failed_runs"] == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("boom", "ValueError: boom"),
        ("nan", "must be finite"),
        ("nothing", "returned no experience"),
        ("missing", "missing"),
    ],
)
async def test_failing_task_ends_as_a_dead_letter_with_its_history(
    bus, start_coordinator, start_worker, name, words
):
    async with start_coordinator(max_retry_times=1) as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=[*tasks(1, name=name), *tasks(1)])
        result = await coordinator.finalize_train_batch(1, timeout=20)
        assert result.finished_task_count == 2
        assert result.metrics["rollout/failed_runs"] == 4
    (letter,) = await dead_letters(bus)
    assert words in letter.reason
    assert letter.attempts == 2
    assert [attempt.end for attempt in letter.history] == ["failed"]
    (manifest,) = await manifests(bus)
    assert manifest.completed_runs == 4


async def test_hanging_task_is_cut_off_and_retried(bus, start_coordinator, start_worker):
    async with start_coordinator(max_timeout_s=0.3, max_retry_times=1) as coordinator:
        async with start_worker():
            await coordinator.submit_batch(batch_id=1, tasks=[*tasks(1, name="hang"), *tasks(1)])
            result = await coordinator.finalize_train_batch(1, timeout=20)
    assert result.finished_task_count == 2
    (letter,) = await dead_letters(bus)
    assert "attempt time-out" in letter.reason
    assert [attempt.end for attempt in letter.history] == ["timeout"]


async def test_finalize_can_be_repeated_after_a_time_out(bus, start_coordinator, start_worker):
    async with start_coordinator() as coordinator:
        await coordinator.submit_batch(batch_id=1, tasks=tasks(2))
        with pytest.raises(BatchTimeout, match="0 of 2 tasks settled"):
            await coordinator.finalize_train_batch(1, timeout=0.1)
        async with start_worker():
            result = await coordinator.finalize_train_batch(1, timeout=10)
    assert result.finished_task_count == 2


async def test_aborted_batch_leaves_nothing_in_queue_or_log(bus, start_coordinator, start_worker):
    async with start_coordinator() as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=tasks(6, name="hang"))
        result = await coordinator.abort_batch(1, reason="changed my mind")
        assert (result.state, result.reason) == ("aborted", "changed my mind")
        assert await coordinator.abort_batch(1, reason="again") is None
        await coordinator.submit_batch(batch_id=2, tasks=tasks(1))
        await coordinator.finalize_train_batch(2, timeout=10)
        info = await bus.api(
            f"STREAM.INFO.{bus.names.tasks_stream}", {"subjects_filter": bus.names.batch_tasks("1")}
        )
        assert not info["state"].get("subjects")
    assert [manifest.batch for manifest in await manifests(bus)] == [2]


async def test_bad_submissions_change_nothing(bus, start_coordinator):
    async with start_coordinator() as coordinator:
        with pytest.raises(InvalidRequest, match="repeat_times"):
            await coordinator.submit_batch(batch_id=1, tasks=[Task()])
        with pytest.raises(InvalidRequest, match="min_wait_num"):
            await coordinator.submit_batch(batch_id=1, tasks=tasks(1), min_wait_num=2)
        await coordinator.submit_batch(batch_id=1, tasks=tasks(1))
        with pytest.raises(ValueError, match="already active"):
            await coordinator.submit_batch(batch_id=1, tasks=tasks(1))
        assert (await coordinator.status())["queued_slices"] == 1
        with pytest.raises(NotFound):
            await coordinator.get_batch_result(7)


async def test_empty_batch_is_complete_at_once(bus, start_coordinator):
    async with start_coordinator() as coordinator:
        await coordinator.submit_batch(batch_id=1, tasks=[])
        result = await coordinator.finalize_train_batch(1, timeout=5)
    assert result.finished_task_count == 0


async def test_batch_goes_on_under_a_new_coordinator(bus, start_coordinator, start_worker):
    many = tasks(300, raw_task={"prompt": "x" * 500})
    async with start_coordinator() as coordinator:
        await coordinator.submit_batch(batch_id=1, tasks=many)
    async with start_coordinator() as coordinator, start_worker():
        result = await coordinator.finalize_train_batch(1, timeout=20)
        assert result.finished_task_count == 300
    async with start_coordinator() as coordinator:
        assert await coordinator.get_batch_result(1) == result
    (manifest,) = await manifests(bus)
    assert manifest.completed_runs == 1200


@pytest.mark.parametrize("journalled", [False, True])
async def test_submit_cut_off_leaves_the_whole_batch_or_nothing(
    bus, start_coordinator, start_worker, monkeypatch, journalled
):
    async with start_coordinator() as coordinator:
        append = Journal.append

        async def cut_off(journal, *entries, then=None):
            if journalled:
                await append(journal, *entries, then=then)
            raise TransientError("killed here")

        monkeypatch.setattr(Journal, "append", cut_off)
        with pytest.raises(TransientError):
            await coordinator.submit_batch(batch_id=1, tasks=tasks(1000, repeat=1))
        monkeypatch.undo()
    async with start_coordinator() as coordinator, start_worker():
        if journalled:
            result = await coordinator.finalize_train_batch(1, timeout=30)
            assert result.finished_task_count == 1000
        else:
            assert coordinator.batches() == []
            assert (await coordinator.status())["queued_slices"] == 0


@pytest.mark.parametrize("step", ["before close", "after close", "before end", "after end"])
async def test_finalize_is_completed_once_after_a_crash_at_any_step(
    bus, start_coordinator, start_worker, monkeypatch, step
):
    async with start_worker():
        async with start_coordinator() as coordinator:
            await coordinator.submit_batch(batch_id=1, tasks=tasks(5))
            append = Journal.append
            kind = "finalizing" if "close" in step else "finalized"

            async def crash(journal, *entries, then=None):
                if entries[0].entry == kind:
                    if "after" in step:
                        await append(journal, *entries, then=then)
                    raise FencedError("killed here")
                await append(journal, *entries, then=then)

            monkeypatch.setattr(Journal, "append", crash)
            if step == "after end":
                await coordinator.finalize_train_batch(1, timeout=10)
            else:
                with pytest.raises(FencedError):
                    await coordinator.finalize_train_batch(1, timeout=10)
            monkeypatch.undo()
        async with start_coordinator() as coordinator:
            if step == "after end":
                result = await coordinator.get_batch_result(1)
            else:
                result = await coordinator.finalize_train_batch(1, timeout=10)
            assert result.finished_task_count == 5
    (manifest,) = await manifests(bus)
    assert manifest.completed_runs == 20


async def test_second_coordinator_fences_the_first(bus, start_coordinator):
    async with start_coordinator() as first:
        with pytest.raises(FencedError, match=r"is led by coordinator-.*--standby"):
            async with start_coordinator():
                pass
        await RunState(bus).remove("leader")  # as if it had run out
        async with start_coordinator() as second:
            await second.submit_batch(batch_id=1, tasks=tasks(1))
            with pytest.raises(FencedError, match="lost leadership"):
                await first.submit_batch(batch_id=2, tasks=tasks(1))


async def test_payload_over_the_message_limit_arrives_whole(
    bus, start_coordinator, start_worker, nats_server, run
):
    async with start_coordinator() as coordinator, start_worker():
        await coordinator.submit_batch(batch_id=1, tasks=tasks(1, repeat=1, name="huge"))
        await coordinator.finalize_train_batch(1, timeout=20)
    async with TrainerClient(run, nats_server.url, "t") as client:
        batch = await client.next_batch()
        assert batch.arrays()["tokens"].sum() == 1_500_000
        await batch.ack()


async def test_worker_stopped_while_it_joins_leaves_nothing_behind(
    bus, start_coordinator, start_worker
):
    async with start_coordinator():
        for _ in range(20):
            async with start_worker():
                await bus.api("INFO")


async def test_drained_worker_hands_its_slices_back_unharmed(bus, start_coordinator, start_worker):
    async with start_coordinator(max_retry_times=0) as coordinator:
        slow = [Task(reward_fn="exact_match", raw_task={"prompt": "a"}, repeat_times=1)]
        async with start_worker(latency_s=60) as worker:
            await coordinator.submit_batch(batch_id=1, tasks=slow)
            async with asyncio.timeout(5):
                while not worker.busy_slots:
                    await worker.changed.wait()
        async with start_worker():
            result = await coordinator.finalize_train_batch(1, timeout=1.5)
    assert result.metrics["rollout/failed_runs"] == 0
