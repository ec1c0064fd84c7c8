"""Attempts: what beats and claims say of them, and every way in which they can be ended."""

from __future__ import annotations

import asyncio

import pytest

from explorer_mq.bus.state import RunState
from explorer_mq.settings import SyntheticSettings
from explorer_mq_schemas.timeouts import AttemptTimeouts
from explorer_mq_workers.activity import Activity
from explorer_mq_workers.engines.synthetic import SyntheticEngine


class Watched(SyntheticEngine):
    """Tells when a request was aborted."""

    def __init__(self, **settings):
        super().__init__(SyntheticSettings(**settings))
        self.asked = asyncio.Event()
        self.aborted = asyncio.Event()

    async def generate(self, prompt_token_ids, config, *, priority=0):
        self.asked.set()
        try:
            return await super().generate(prompt_token_ids, config, priority=priority)
        except asyncio.CancelledError:
            self.aborted.set()
            raise


async def test_slices_are_claimed_before_the_next_beat(bench, start_worker, make_slice):
    await bench.queue.publish([make_slice(n, "hang") for n in range(3)])
    async with start_worker(beat_interval_s=60):
        claims = []
        async with asyncio.timeout(5):
            while len(claims) < 3:
                message = await bench.claims.get()
                claims += message.claims
    assert [(one.batch, one.task, one.slice, one.attempt) for one in claims] == [
        ("b", n, 0, 1) for n in range(3)
    ]
    assert all(one.lease.startswith("$JS.ACK.") for one in claims)
    assert message.worker.startswith("worker")


async def test_slices_taken_together_are_claimed_together(bench, start_worker, make_slice):
    await bench.queue.publish([make_slice(n, "hang") for n in range(32)])
    async with start_worker(slots=32):
        messages = claims = 0
        async with asyncio.timeout(5):
            while claims < 32:
                claims += len((await bench.claims.get()).claims)
                messages += 1
    assert messages < 8


async def test_beat_says_what_each_slot_is_doing(bench, start_worker, make_slice, gate):
    row = {"raw_task": {"gate": gate.name}}
    await bench.queue.publish([make_slice(3, "call_once", runs=2, task=row)])
    async with start_worker(engine={"tokens": 5}, beat_interval_s=0.05):
        beat = await bench.beat(lambda b: b.running and b.running[0].tokens == 10)
    (one,) = beat.running
    assert (one.task, one.slot, one.attempt, one.calls) == (3, 0, 1, 2)
    assert one.lease.startswith("$JS.ACK.")
    assert one.started_at <= one.progress_at <= beat.sent_at + 1
    assert one.state["phase"] == "waiting"
    assert one.state["workflow_id"] == "b/3/0"
    assert one.state["model_version"] == 0
    assert one.state["terminate_time"] is None
    assert one.state["begin_time"] >= one.started_at - 1


async def test_lowest_free_slot_is_used_again(bench, start_worker, make_slice):
    await bench.queue.publish([make_slice(n, "hang") for n in range(3)])
    async with start_worker(beat_interval_s=0.05):
        await bench.beat(lambda b: len(b.running) == 3)
        await bench.cancel("b", 1)
        await bench.beat(lambda b: len(b.running) == 2)
        await bench.queue.publish([make_slice(7, "hang")])
        beat = await bench.beat(lambda b: len(b.running) == 3)
    assert [(one.slot, one.task) for one in beat.running] == [(0, 0), (1, 7), (2, 2)]


@pytest.mark.parametrize("name", ["ask", "hang", "hang_in_thread"])
async def test_cancelled_work_is_gone_with_the_next_beat(bench, start_worker, make_slice, name):
    engine = Watched(latency_s=600)
    await bench.queue.publish([make_slice(0, name), make_slice(1, "hang", batch="other")])
    async with start_worker(engine=engine, beat_interval_s=60):
        await bench.beat(lambda b: b.state == "ready")
        async with asyncio.timeout(5):
            taken = 0
            while taken < 2:
                taken += len((await bench.claims.get()).claims)
            if name == "ask":
                await engine.asked.wait()
            await bench.cancel()
            beat = await bench.beat(lambda b: True, seconds=0.5)
        assert [one.batch for one in beat.running] == ["other"]
        assert engine.aborted.is_set() == (name == "ask")
        await bench.until_queued(1)


async def test_workflow_that_swallows_cancelling_loses_slot_and_engine(
    bench, start_worker, make_slice, gate, seen
):
    engine = Watched(latency_s=600)
    row = {"raw_task": {"gate": gate.name}}
    await bench.queue.publish([make_slice(0, "stubborn", task=row)])
    async with start_worker(engine=engine, slots=1) as worker:
        async with asyncio.timeout(5):
            await engine.asked.wait()
            await bench.cancel()
            await engine.aborted.wait()
            await bench.queue.publish([make_slice(1, batch="next")])
            key, _ = await bench.result()
        assert key.batch == "next"
        assert worker.abandoned == 1
        assert seen.count("refused") < 6, "it asks on, but is put to rest"
        (abandoned,) = worker._attempts._abandoned
        (put_to_rest,) = (one for one in asyncio.all_tasks() if one.get_name() == "run 0")
        gate.set()
        put_to_rest.cancel()
        await asyncio.wait((abandoned,))
        assert worker.abandoned == 0


async def test_dynamic_timeout_ends_an_attempt_and_a_bad_value_changes_nothing(
    bench, start_worker, make_slice, caplog
):
    state = RunState(bench.bus)
    await state.put("timeouts", AttemptTimeouts(ratio=2.0, train={1: 0.1}).encode())
    async with start_worker():
        await bench.queue.publish([make_slice(0, "hang")])
        record = await bench.attempt()
        assert record.end == "timeout"
        assert 0.2 <= record.seconds < 0.5
        assert "within 0.2 s (attempt time-out, shortened" in record.failure.message
        await state.put("timeouts", b"{}")
        await bench.queue.publish([make_slice(1, "hang")])
        assert 0.2 <= (await bench.attempt()).seconds < 0.5
        assert "the last good ones stay" in caplog.text
        eval_task = make_slice(2, "hang", task={"is_eval": True}, timeout_s=0.4)
        await bench.queue.publish([eval_task])
        async with asyncio.timeout(5):
            while (record := await bench.attempt()).seconds < 0.4:
                pass
        assert "within 0.4 s (attempt time-out)" in record.failure.message


async def test_attempt_without_progress_is_ended_as_stalled(bench, start_worker, make_slice, gate):
    row = {"raw_task": {"gate": gate.name}}
    async with start_worker(engine={"tokens": 5}):
        await bench.queue.publish([make_slice(0, "call_once", task=row, stall_timeout_s=0.3)])
        record = await bench.attempt()
    assert record.end == "stalled"
    assert 0.3 <= record.seconds < 0.6
    assert record.failure.kind == "Stalled"
    text = record.failure.message
    assert "slice b/0/0" in text
    assert "after 1 calls and 5 tokens it was in its own code" in text
    assert "scheduler.stall_timeout_s = 0.3" in text


async def test_sampled_tokens_and_noted_states_are_progress(bench, start_worker, make_slice):
    slow = make_slice(0, "ask", stall_timeout_s=0.3)
    noting = make_slice(1, "noting", stall_timeout_s=0.3)
    async with start_worker(engine={"tokens": 100, "latency_s": 1.0}):
        await bench.queue.publish([slow, noting])
        assert {(await bench.result())[0].task for _ in range(2)} == {0, 1}


async def test_engine_that_samples_nothing_is_a_stall(bench, start_worker, make_slice):
    engine = Watched(tokens=1, latency_s=600)
    async with start_worker(engine=engine):
        await bench.queue.publish([make_slice(0, "ask", stall_timeout_s=0.3)])
        record = await bench.attempt()
        assert record.end == "stalled"
        assert "it waited for 1 answers" in record.failure.message
        assert engine.aborted.is_set()


async def test_time_in_which_the_engine_is_paused_is_no_stall():
    engine = SyntheticEngine(SyntheticSettings())
    activity = Activity(engine)
    idle_s = activity.idle_s
    engine.paused_s = 500.0
    assert activity.idle_s < idle_s - 499
    activity.mark()
    assert 0 <= activity.idle_s < 1


async def test_engine_that_cannot_tell_is_never_stalled(bench, start_worker, make_slice):
    engine = Watched(tokens=1, latency_s=1.0)
    engine.tokens_of = lambda request: None
    async with start_worker(engine=engine):
        await bench.queue.publish([make_slice(0, "ask", stall_timeout_s=0.3)])
        await bench.result()


async def test_workflow_that_cancels_its_own_attempt_fails_like_any_other(
    bench, start_worker, make_slice
):
    await bench.queue.publish([make_slice(0, "cancel_everybody")])
    async with start_worker() as worker:
        record = await bench.attempt()
        assert "cancelled" in record.failure.message
        assert not worker.running.done()
