"""A worker's life with its slices: pools, retries, history, draining, leases of others."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from explorer_mq.bus.follower import Follower
from explorer_mq.bus.topology import ensure_pool
from explorer_mq.settings import NatsSettings, Settings
from explorer_mq_schemas.results import Attempt, DeadLetter, Result
from explorer_mq_workers import worker as worker_module
from explorer_mq_workers.reports import full_history


async def dead_letter(bus):
    async with Follower(bus, bus.names.dead_stream, [bus.names.all_dead]) as follower:
        async with asyncio.timeout(10):
            return DeadLetter.decode((await follower.next_batch())[0].data)


async def test_worker_serves_exactly_its_pools(bench, start_worker, make_slice):
    for pool in ("red", "green", "blue"):
        await ensure_pool(bench.bus, pool, lease_s=2.0)
    pools = ["red", "green", "blue"] * 2
    await bench.queue.publish([make_slice(n, task={"pool": pool}) for n, pool in enumerate(pools)])
    async with start_worker(pools=("red", "green"), id="two") as first:
        done = {(await bench.result())[0].task for _ in range(4)}
        assert done == {0, 1, 3, 4}
        await bench.until_queued(2)
        async with start_worker(pools=("blue",), id="one"):
            for task in (2, 5):
                key, result = await bench.result()
                assert (key.task, result.worker) == (task, "one")
    assert first.name == "two"


async def test_pause_before_a_retry_doubles_up_to_its_limit_with_jitter(
    bench, start_worker, make_slice
):
    scheduler = {"retry_first_s": 0.1, "retry_longest_s": 0.3}
    await bench.queue.publish([make_slice(n, "boom", max_attempts=4) for n in range(3)])
    async with start_worker(scheduler=scheduler):
        records = [await bench.attempt() for _ in range(9)]
    for number, longest_s in ((1, 0.1), (2, 0.2), (3, 0.3)):
        pauses = [one.retry_in_s for one in records if one.attempt == number]
        assert all(longest_s / 2 <= pause <= longest_s for pause in pauses)
        assert len(set(pauses)) == 3


async def test_records_of_lost_attempts_change_nothing_about_excused_ones(
    bench, start_worker, make_slice
):
    one = make_slice(0, "hang", max_attempts=1)
    await bench.queue.publish([one])
    for _ in range(2):
        async with start_worker():
            await bench.claims.get()
        assert (await bench.attempt()).end == "drained"
    lost = Attempt(worker="dead", attempt=1, seconds=1.0, end="lost")
    await bench.results.publish_attempt(one.key, lost)
    async with start_worker():
        assert (await bench.claims.get()).claims[0].attempt == 1


async def test_slice_that_comes_again_while_its_attempt_goes_on_is_a_new_lease(
    bench, start_worker, make_slice, gate, seen
):
    row = {"raw_task": {"gate": gate.name}}
    await bench.queue.publish([make_slice(0, "counted", task=row, max_attempts=1)])
    async with start_worker():
        (first,) = (await bench.claims.get()).claims
        await bench.bus.publish(first.lease, b"-NAK")  # somebody takes its worker for dead
        async with asyncio.timeout(5):
            (second,) = (await bench.claims.get()).claims
        assert (second.attempt, second.lease != first.lease) == (1, True)
        gate.set()
        _, result = await bench.result()
        await bench.until_queued(0)
    assert (result.attempt, seen) == (1, ["begun"])


def test_history_fills_gaps_and_prefers_what_the_worker_said():
    def record(attempt, end, worker="w"):
        return Attempt(worker=worker, attempt=attempt, seconds=0.0, end=end)

    history = full_history(
        [
            record(3, "drained"),
            record(3, "lost", "coordinator's word"),
            record(4, "lost"),
            record(4, "failed"),
            record(5, "timeout"),
            record(5, "lost"),
            record(6, "drained"),
        ],
        first=2,
        end=7,
    )
    assert [(one.attempt, one.end) for one in history] == [
        (2, "lost"),
        (3, "lost"),
        (4, "failed"),
        (5, "timeout"),
        (6, "lost"),
    ]
    assert [one.worker for one in history if one.attempt in (2, 6)] == ["unknown"] * 2
    assert "worker died" in history[0].failure.message


async def test_slice_whose_workers_all_died_is_given_up_with_its_whole_history(
    bench, start_worker, make_slice, connect
):
    from explorer_mq.bus.tasks import TaskSource

    await bench.queue.publish([make_slice(0, max_attempts=2)])
    dead = TaskSource(await connect(), ["default"], lease_s=2.0)
    await dead.start()
    dead.add_credits(2)
    for _ in range(2):
        lease = await dead.take()
        await lease.hand_back()  # a delivery without any record, as after a death
    await dead.close()
    await dead.stop_extending()
    async with start_worker():
        _, result = await bench.result()
    letter = await dead_letter(bench.bus)
    assert (result.completed, result.attempt, letter.attempts) == ((), 2, 2)
    assert letter.failure.kind == "WorkerLost"
    assert [(one.attempt, one.end, one.worker) for one in letter.history] == [
        (1, "lost", "unknown"),
        (2, "lost", "unknown"),
    ]


async def test_draining_costs_no_attempt_not_even_of_slices_that_only_waited(
    bench, start_worker, make_slice
):
    fields = {"name": "hang", "max_attempts": 1}
    await bench.queue.publish([make_slice(n, **fields) for n in range(2)])
    async with start_worker(slots=2) as worker:
        while worker.busy_slots < 2:
            await worker.changed.wait()
        await bench.queue.publish([make_slice(n, lane="urgent", **fields) for n in range(2, 4)])
        async with asyncio.timeout(5):
            while worker._source.held < 4:  # the urgent lane was asked for two as well
                await bench.bus.api("INFO")
        assert worker.busy_slots == 2
    records = [await bench.report() for _ in range(4)]
    assert {key.task for key, _ in records} == {0, 1, 2, 3}
    assert {(record.end, record.excused) for _, record in records} == {("drained", 1)}
    while not bench.claims.empty():
        bench.claims.get_nowait()
    async with start_worker():
        claims = []
        async with asyncio.timeout(5):
            while len(claims) < 4:
                claims += (await bench.claims.get()).claims
    assert [claim.attempt for claim in claims] == [1] * 4


async def test_result_in_the_making_is_reported_before_the_end(
    bench, start_worker, make_slice, gate
):
    row = {"raw_task": {"gate": gate.name}}
    await bench.queue.publish([make_slice(0, "gated", task=row)])
    async with start_worker() as worker:
        while not worker.busy_slots:
            await worker.changed.wait()
        publish = worker._reports._log.publish
        publishing, go_on = asyncio.Event(), asyncio.Event()

        async def slow(*args):
            publishing.set()
            await go_on.wait()
            return await publish(*args)

        worker._reports._log.publish = slow
        gate.set()
        await publishing.wait()
        worker.stop.set()
        beat = await bench.beat(lambda b: b.state == "draining")
        assert len(beat.running) == 1
        go_on.set()
    await bench.result()
    await bench.until_queued(0)


async def test_cancel_reaches_a_slice_whose_result_cannot_be_stored(
    bench, start_worker, make_slice
):
    async with start_worker(slots=1) as worker:
        publishing = asyncio.Event()
        publish = worker._reports._log.publish

        async def stuck(*args):
            publishing.set()
            await asyncio.Event().wait()

        worker._reports._log.publish = stuck
        await bench.queue.publish([make_slice(0)])
        await publishing.wait()
        worker._reports._log.publish = publish
        await bench.cancel()
        await bench.queue.publish([make_slice(1, batch="next")])
        key, _ = await bench.result()
    assert key.batch == "next"


async def test_second_result_is_counted_as_rejected(bench, start_worker, make_slice):
    one = make_slice(0)
    first = Result(worker="first", attempt=1, seconds=0.0, run_ids=(0,), completed=(0,))
    await bench.results.publish(one.key, first, b"")
    await bench.queue.publish([one])
    async with start_worker(beat_interval_s=0.05):
        beat = await bench.beat(lambda b: b.rejected_results)
        await bench.until_queued(0)
    assert (beat.rejected_results, beat.lost_leases) == (1, 0)


async def test_names_of_the_connections_tell_the_worker(nats_server, run, bus, bench, monkeypatch):
    names = []
    connect = worker_module.Bus.connect

    async def note(run_name, options):
        names.append(options.name)
        return await connect(run_name, options)

    monkeypatch.setattr(worker_module.Bus, "connect", note)
    stop = asyncio.Event()
    settings = Settings(
        run=run, nats=NatsSettings(url=nats_server.url), worker={"engine": {"type": "synthetic"}}
    )
    serving = asyncio.create_task(worker_module.serve_worker(settings, stop))
    beat = await bench.beat(lambda b: b.state == "ready")
    stop.set()
    await serving
    probe, lasting = (bus.names.parse_connection(name) for name in names)
    assert lasting == ("worker", beat.worker)
    assert probe[0] != "worker"


@pytest.mark.parametrize("count", [3])
async def test_policy_change_is_told_at_once(bench, start_worker, count):
    async with start_worker(beat_interval_s=60) as worker:
        await bench.beat(lambda b: b.state == "ready")
        stamps = []
        for number in range(count):
            worker._policy.error = f"error {number}"
            worker._policy.changed.beat()
            beat = await bench.beat(lambda b, n=number: b.policy_error == f"error {n}", seconds=1)
            stamps.append(beat.sent_at)
        assert all(0.09 < later - sooner < 1 for sooner, later in pairwise(stamps))
