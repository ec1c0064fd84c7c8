"""The scheduler by itself: scheduling, collecting, states, and where we decide unlike the reference."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from explorer_mq.bus.follower import Follower
from explorer_mq.scheduler import Scheduler
from explorer_mq.scheduler_actor import SchedulerHandle, serve_scheduler
from explorer_mq_schemas.codec import unpack
from explorer_mq_schemas.results import DeadLetter
from explorer_mq_schemas.tasks import Task
from tests.coordinator.conftest import make_settings

WORKFLOWS = Path(__file__).with_name("workflows.py")


def tasks(count, repeat=2, name="good", **fields):
    workflow = f"{WORKFLOWS}:{name}"
    return [Task(workflow=workflow, repeat_times=repeat, **fields) for _ in range(count)]


@pytest.fixture
def start_scheduler(connect, run):
    @asynccontextmanager
    async def start(**settings):
        scheduler = Scheduler(await connect(), make_settings(run, **settings))
        await scheduler.start()
        try:
            yield scheduler
        finally:
            await scheduler.stop()

    return start


async def runs_of(payloads):
    return sorted((one.eid.task, one.eid.run) for payload in payloads for one in unpack(payload))


async def settled(scheduler, batch, count):
    live = scheduler.batches.find(batch)
    async with asyncio.timeout(10):
        while live.state.settled < count:
            await live.changed.wait()


async def test_statuses_and_experiences_are_taken_once(bus, start_scheduler, start_worker):
    async with start_scheduler() as scheduler, start_worker():
        await scheduler.schedule(tasks(3), "0")
        assert scheduler.has_step("0")
        statuses, payloads = await scheduler.get_payload_results("0", timeout=10)
        assert {status.task_id for status in statuses} == {0, 1, 2}
        assert all(status.ok and status.message is None for status in statuses)
        assert await runs_of(payloads) == [(task, run) for task in range(3) for run in range(2)]
        assert await scheduler.get_payload_results("0") == ([], [])
        await scheduler.wait_all(10)
        assert not scheduler.has_step("0")
        await scheduler.schedule([], "nothing")
        assert not scheduler.has_step("nothing")


async def test_statuses_come_in_order_of_the_results(bus, start_scheduler, start_worker):
    async with start_scheduler() as scheduler, start_worker():
        slow = Task(reward_fn="exact_match", raw_task={"prompt": "a"}, repeat_times=1)
        await scheduler.schedule([slow, *tasks(2)], 1)
        first = await scheduler.get_statuses(1, timeout=10)
    async with Follower(
        bus, bus.names.results_stream, [bus.names.all_results], headers_only=True
    ) as results:
        stored = [bus.names.parse_slice(m.subject).task for m in await results.catch_up()]
    assert [status.task_id for status in first] == stored


async def test_more_tasks_can_be_collected_later(bus, start_scheduler, start_worker):
    async with start_scheduler(over_rollout={"wait_after_min_s": 0}) as scheduler:
        async with start_worker():
            await scheduler.schedule([*tasks(2), *tasks(1, name="hang")], 1)
            statuses = await scheduler.get_statuses(
                1, min_num=2, timeout=10, clear_timeout_tasks=False
            )
            assert [status.completed_runs for status in statuses] == [2, 2]
            again = await scheduler.get_statuses(1, timeout=0.1, clear_timeout_tasks=False)
            assert again == []
            assert scheduler.has_step(1)
            assert await scheduler.abort_batch(1) == ([], [])
    assert not scheduler.has_step(1)


async def test_partial_tasks_are_taken_when_asked_for(bus, start_scheduler, start_worker):
    settings = {"max_repeat_times_per_runner": 1, "max_timeout_s": 60}
    async with start_scheduler(**settings) as scheduler, start_worker():
        half = tasks(1, name="first_run_only", raw_task={"key": bus.names.run})
        await scheduler.schedule([*half, *tasks(1)], 1)
        await settled(scheduler, 1, 1)
        live = scheduler.batches.find(1)
        async with asyncio.timeout(10):
            while live.state.completed_runs < 3:
                await live.changed.wait()
        statuses, payloads = await scheduler.abort_batch(1, return_partial_tasks=True)
        by_task = {status.task_id: status for status in statuses}
        assert by_task[0].message.startswith("1/2 runs completed successfully. Remaining runs were")
        assert len(await runs_of(payloads)) == 3


@pytest.mark.parametrize("bad", [None, 0])
async def test_scheduling_twice_or_without_runs_changes_nothing(bus, start_scheduler, bad):
    async with start_scheduler() as scheduler:
        await scheduler.schedule(tasks(1), 1)
        with pytest.raises(ValueError, match="already active"):
            await scheduler.schedule(tasks(5), 1)
        with pytest.raises(ValueError, match="repeat_times"):
            await scheduler.schedule([Task(repeat_times=bad)], 2)
        assert not scheduler.has_step(2)
        assert scheduler.batches.find(1).state.task_count == 1


async def test_wait_all_times_out_while_work_is_open(bus, start_scheduler):
    async with start_scheduler() as scheduler:
        await scheduler.schedule(tasks(1), 1)
        with pytest.raises(TimeoutError):
            await scheduler.wait_all(0.05)


async def test_runner_states_tell_what_each_slot_does(bus, start_scheduler, start_worker):
    async with start_scheduler() as scheduler, start_worker() as worker:
        await scheduler.schedule(tasks(1, repeat=1, name="noted_hang"), 7)
        async with asyncio.timeout(10):
            while not scheduler.get_key_state("phase"):
                await scheduler.roster.changed.wait()
        ((runner, state),) = scheduler.get_all_state().items()
        assert runner == f"{worker.name}/0"
        assert (state["workflow_id"], state["phase"]) == ("7/0/0", "thinking")
        assert scheduler.get_runner_state(runner) == state
        assert scheduler.get_runner_state("nobody/0") == {}
        header, row = scheduler.print_all_state().splitlines()
        assert header.startswith("runner_id")
        assert "running_time" in header
        assert "thinking" in row
        await scheduler.abort_batch(7)


async def test_handle_does_over_nats_what_the_scheduler_does(
    bus, connect, start_scheduler, start_worker
):
    async with start_scheduler() as scheduler, start_worker():
        service = await serve_scheduler(await connect(), scheduler, version="0.0.0")
        handle = Scheduler.get_actor(bus)
        assert isinstance(handle, SchedulerHandle)
        await handle.schedule(tasks(2), "a/b")
        statuses, payloads = await handle.get_payload_results("a/b", timeout=10)
        assert [status.ok for status in statuses] == [True, True]
        assert len(await runs_of(payloads)) == 4
        await handle.wait_all(10)
        assert not await handle.has_step("a/b")
        assert await handle.dynamic_timeout() == 5.0
        assert await handle.get_all_state() == {}
        await service.close()


async def test_an_attempt_has_the_whole_time_and_the_batch_all_of_them(bus, start_scheduler):
    """Decision 1: a time-out ends an attempt, not the batch."""
    async with start_scheduler(max_timeout_s=5.0, max_retry_times=2) as scheduler:
        await scheduler.schedule(tasks(1), 1)
        opening = scheduler.batches.find(1).state.opening
        assert (opening.timeout_s, opening.max_attempts) == (5.0, 3)
        assert opening.deadline_s > 15.0


async def test_timed_out_attempt_leaves_nothing_of_it_in_the_status(
    bus, start_scheduler, start_worker
):
    """Decision 2: its payload cannot leak into a failed status."""
    async with start_scheduler(max_timeout_s=0.3, max_retry_times=0) as scheduler, start_worker():
        await scheduler.schedule(tasks(1, name="hang"), 1)
        statuses, payloads = await scheduler.get_payload_results(1, timeout=10)
    assert [status.completed_runs for status in statuses] == [0]
    assert payloads == []
    assert "attempt time-out" in statuses[0].message


async def test_failures_of_a_group_do_not_rename_its_series(bus, start_scheduler, start_worker):
    """Decision 19: mean@n is over the group's size; here 2 of 4 runs fail for good."""
    async with start_scheduler(max_retry_times=0) as scheduler, start_worker():
        flaky = tasks(1, repeat=4, name="flaky", is_eval=True, raw_task={"key": bus.names.run})
        await scheduler.schedule(flaky, 1)
        (status,) = await scheduler.get_statuses(1, timeout=10)
    assert (status.completed_runs, status.total_runs) == (2, 4)
    assert "m/mean@4" in status.metrics[0]
    assert status.message.startswith("2/4 runs completed successfully. First error: ")


async def test_metric_that_is_no_number_names_its_key(bus, start_scheduler, start_worker):
    """Decision 20: it is an error of the task, never dropped."""
    async with start_scheduler(max_retry_times=0) as scheduler, start_worker():
        await scheduler.schedule(tasks(1, name="text_metric"), 1)
        (status,) = await scheduler.get_statuses(1, timeout=10)
    assert "note" in status.message
    async with Follower(bus, bus.names.dead_stream, [bus.names.all_dead]) as letters:
        (letter,) = [DeadLetter.decode(m.data) for m in await letters.catch_up()]
    assert "note" in letter.reason
