"""A worker whose server dies or freezes: it stays, and loses no finished result."""

from __future__ import annotations

import asyncio
import os
import signal

from explorer_mq.settings import Settings
from explorer_mq_schemas.errors import BusUnavailable
from explorer_mq_workers import worker as worker_module
from explorer_mq_workers.engines.synthetic import SyntheticEngine

LEASE_S = 2.0


async def until_cut_off(bus):
    """Wait until the client has noticed that its server is gone."""
    while bus.is_connected:
        await bus.wait_reconnect(0.01)


async def test_results_finished_while_the_server_is_dead_arrive_afterwards(
    server, own_bench, start_worker, make_slice, gate
):
    row = {"raw_task": {"gate": gate.name}}
    bench = own_bench
    await bench.queue.publish([make_slice(n, "gated", task=row) for n in range(4)])
    async with start_worker(url=server.url, beat_interval_s=60) as worker:
        while worker.busy_slots < 4:
            await worker.changed.wait()
        server.kill()
        await until_cut_off(bench.bus)
        gate.set()
        with_nothing = asyncio.create_task(worker.changed.wait())
        await asyncio.wait((with_nothing, worker.running), timeout=1.5 * LEASE_S)
        assert not worker.running.done()
        assert worker.busy_slots == 4
        with_nothing.cancel()
        server.restart()
        beat = await bench.beat(lambda b: True)
        assert len(beat.running) <= 4
        assert {(await bench.result())[0].task for _ in range(4)} == {0, 1, 2, 3}
        await bench.until_queued(0)
        await bench.queue.publish([make_slice(9)])
        assert (await bench.result())[0].task == 9


async def test_attempt_goes_on_under_a_new_lease_after_a_long_outage(
    server, own_bench, start_worker, make_slice, gate, seen
):
    row = {"raw_task": {"gate": gate.name}}
    bench = own_bench
    await bench.queue.publish([make_slice(0, "counted", task=row, max_attempts=1)])
    async with start_worker(url=server.url, beat_interval_s=0.1) as worker:
        while not worker.busy_slots:
            await worker.changed.wait()
        old = (await bench.claims.get()).claims[0]
        os.kill(server.pid, signal.SIGSTOP)
        await asyncio.wait((worker.running,), timeout=2 * LEASE_S)
        os.kill(server.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            new = (await bench.claims.get()).claims[0]
        assert (new.attempt, new.lease != old.lease) == (1, True)
        beat = await bench.beat(lambda b: b.lost_leases == 1)
        assert [one.lease for one in beat.running] == [new.lease]
        gate.set()
        _, result = await bench.result()
        assert (result.attempt, seen) == (1, ["begun"])
        await bench.until_queued(0)
        await bench.beat(lambda b: not b.rejected_results)


async def test_stopping_without_a_server_takes_no_longer_than_draining_may(
    server, own_bench, start_worker, make_slice
):
    bench = own_bench
    await bench.queue.publish([make_slice(0, "hang")])
    async with start_worker(url=server.url, drain_timeout_s=0.5) as worker:
        while not worker.busy_slots:
            await worker.changed.wait()
        server.kill()
        await until_cut_off(bench.bus)
        worker.stop.set()
        done, _ = await asyncio.wait((worker.running,), timeout=3)
        assert done
    server.restart()


async def test_worker_that_joins_during_an_outage_serves_afterwards(
    server, own_bench, start_worker, make_slice
):
    bench = own_bench
    os.kill(server.pid, signal.SIGSTOP)
    starting = start_worker(url=server.url)
    os.kill(server.pid, signal.SIGCONT)
    async with starting as worker:
        server.restart()
        await bench.bus.wait_reconnect(5)
        await bench.queue.publish([make_slice(0)])
        assert (await bench.result())[0].task == 0
        assert not worker.running.done()


async def test_server_that_dies_while_the_engine_loads_is_waited_for(
    server, own_bench, run, monkeypatch, make_slice
):
    start = SyntheticEngine.start

    async def load(engine):
        await start(engine)
        server.kill()

    monkeypatch.setattr(SyntheticEngine, "start", load)
    stop, refused = asyncio.Event(), asyncio.Event()
    connect = worker_module.Bus.connect

    async def note(run_name, options):
        try:
            return await connect(run_name, options)
        except BusUnavailable:
            refused.set()
            raise

    monkeypatch.setattr(worker_module.Bus, "connect", note)
    settings = Settings(
        run=run,
        nats={"url": server.url, "connect_timeout_s": 0.5},
        worker={"engine": {"type": "synthetic"}},
    )
    serving = asyncio.create_task(worker_module.serve_worker(settings, stop))
    async with asyncio.timeout(10):
        await refused.wait()
    server.restart()
    await own_bench.bus.wait_reconnect(5)
    await own_bench.queue.publish([make_slice(0)])
    assert (await own_bench.result())[0].task == 0
    stop.set()
    await serving
