"""Leases under a server that stops, dies and comes back; reports that outlast it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from explorer_mq.bus.connection import JetStreamError
from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.bus.patience import Patience
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.tasks import TaskQueue, TaskSource
from explorer_mq.bus.topology import ensure, ensure_pool
from explorer_mq_schemas.errors import BusUnavailable
from explorer_mq_schemas.results import Attempt, Result
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_schemas.tasks import Slice, Task

LEASE_S = 1.0


@pytest.fixture
async def own(server, run, connect):
    """A connection to a run on a server of the test's own."""
    bus = await connect(server.url)
    await ensure(bus)
    await ensure_pool(bus, "default", lease_s=LEASE_S)
    return bus


@pytest.fixture
async def own_publisher(own):
    async with Publisher(own) as opened:
        yield opened


@pytest.fixture
async def source(own):
    opened = TaskSource(own, ["default"], lease_s=LEASE_S)
    await opened.start()
    yield opened
    await opened.close()
    await opened.stop_extending()


def make_slice(task=0):
    return Slice(batch="b", task_number=task, number=0, run_ids=(0,), task=Task())


async def queued(bus):
    info = await bus.api(f"STREAM.INFO.{bus.names.tasks_stream}")
    return info["state"]["messages"]


async def deliveries(bus):
    """How often slices were given out, over all lanes."""
    listed = await bus.api(f"CONSUMER.LIST.{bus.names.tasks_stream}")
    return sum(one["delivered"]["consumer_seq"] for one in listed["consumers"])


def freeze(server, seconds):
    """SIGSTOP the server for so long, seen from the loop's clock."""
    os.kill(server.pid, signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_later(seconds, done.set_result, None)
    done.add_done_callback(lambda _: os.kill(server.pid, signal.SIGCONT))
    return done


async def test_held_lease_outlasts_many_lease_times(own, own_publisher, source):
    await TaskQueue(own, own_publisher).publish([make_slice()])
    source.add_credits(2)
    lease = await source.take()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * LEASE_S):
            await source.take()
    assert (lease.is_lost, source.lost, await deliveries(own)) == (False, 0, 1)
    await lease.ack()


async def test_lease_is_lost_when_the_server_did_not_answer_in_time(
    server, own, own_publisher, source
):
    await TaskQueue(own, own_publisher).publish([make_slice()])
    source.add_credits(1)
    lease = await source.take()
    await freeze(server, 2.5 * LEASE_S)
    assert (lease.is_lost, source.lost, source.held) == (True, 1, 0)
    source.add_credits(1)
    async with asyncio.timeout(5):
        heir = await source.take()
    assert heir.delivery == 2
    given_out = await deliveries(own)
    await lease.hand_back()
    await lease.terminate("no")
    await lease.hand_back(0.1)
    source.add_credits(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await source.take()
    assert (await queued(own), await deliveries(own)) == (1, given_out)
    await lease.ack()
    async with asyncio.timeout(5):
        while await queued(own):
            pass
    await heir.ack()


async def test_lost_lease_is_not_extended(server, own, own_publisher, source):
    await TaskQueue(own, own_publisher).publish([make_slice()])
    source.add_credits(1)
    lease = await source.take()
    await freeze(server, 2.5 * LEASE_S)
    assert lease.is_lost
    source.add_credits(1)
    heir = await source.take()
    await source.stop_extending()
    other = TaskSource(own, ["default"], lease_s=LEASE_S)
    await other.start()
    other.add_credits(1)
    async with asyncio.timeout(3 * LEASE_S):
        assert (await other.take()).delivery == heir.delivery + 1
    for one in await other.close():
        await one.hand_back()
    await other.stop_extending()


async def test_acknowledgement_sent_into_an_outage_arrives_after_it(
    server, own, own_publisher, source
):
    await TaskQueue(own, own_publisher).publish([make_slice(n) for n in range(3)])
    source.add_credits(3)
    leases = [await source.take() for _ in range(3)]
    os.kill(server.pid, signal.SIGSTOP)
    await leases[0].ack()  # into a server that will never read it
    server.kill()
    await leases[1].ack()
    while own.is_connected:
        await own.wait_reconnect(0.01)
    await leases[2].ack()
    server.restart()
    async with asyncio.timeout(5):
        await own.wait_reconnect(5)
        while await queued(own):
            pass


async def test_untaken_leases_are_the_callers_at_the_close(own, own_publisher):
    source = TaskSource(own, ["default"], lease_s=LEASE_S)
    await source.start()
    await TaskQueue(own, own_publisher).publish([make_slice(n) for n in range(2)])
    source.add_credits(2)
    async with asyncio.timeout(5):
        while source.held < 2:
            await own.api("INFO")
    left = await source.close()
    assert [lease.delivery for lease in left] == [1, 1]
    await source.stop_extending()


async def test_publish_cut_off_by_a_kill_fails_at_the_reconnect(server, own, own_publisher):
    os.kill(server.pid, signal.SIGSTOP)
    sent = await own_publisher.publish(own.names.object("x"), b"lost")
    server.kill()
    while own.is_connected:
        await own.wait_reconnect(0.01)
    kept = await own_publisher.publish(own.names.object("y"), b"kept")
    server.restart()
    async with asyncio.timeout(5):
        with pytest.raises(BusUnavailable, match="connection broke"):
            await sent
        await kept


async def test_patience_outlasts_an_outage_and_says_so_once(server, own, own_publisher, caplog):
    caplog.set_level("INFO", "explorer_mq.bus.patience")
    patience = Patience(own)
    log = ResultLog(own, own_publisher)
    result = Result(worker="w", attempt=1, seconds=0.1, run_ids=(0,), completed=(0,))
    os.kill(server.pid, signal.SIGSTOP)
    waiting = [
        asyncio.create_task(
            patience.until_done(
                lambda n=n: log.publish(SliceKey("b", n, 0), result, b"payload"), "publishing"
            )
        )
        for n in range(20)
    ]
    await asyncio.wait(waiting, timeout=0.2)
    server.restart()
    async with asyncio.timeout(10):
        assert all(await asyncio.gather(*waiting))
    said = [one.message for one in caplog.records if one.message.startswith("publishing:")]
    assert len(said) == 2
    assert "works again" in said[-1]
    assert await log.last_seq() == 20


async def test_full_disk_is_waited_for(tmp_path, run, connect, caplog):
    with EmbeddedServer(tmp_path, run="full", max_store_bytes=8 << 20) as server:
        bus = await connect(server.url)
        await ensure(bus)
        async with Publisher(bus) as publisher:
            junk = bus.names.object("junk")
            with pytest.raises(JetStreamError, match="insufficient"):
                for number in range(100):
                    await publisher.publish_wait(f"{junk}.{number}", bytes(1 << 20))
            log = ResultLog(bus, publisher)
            result = Result(worker="w", attempt=1, seconds=0.1, run_ids=(0,), completed=(0,))
            publishing = asyncio.create_task(
                Patience(bus).until_done(
                    lambda: log.publish(SliceKey("b", 0, 0), result, bytes(2 << 20)), "publishing"
                )
            )
            await asyncio.wait((publishing,), timeout=1.0)
            assert not publishing.done()
            assert len([one for one in caplog.records if "publishing" in one.message]) == 1
            await bus.api(
                f"STREAM.PURGE.{bus.names.results_stream}", {"filter": bus.names.all_objects}
            )
            async with asyncio.timeout(10):
                assert await publishing


async def test_repeated_records_are_kept_once(bus):
    async with Publisher(bus) as publisher:
        log = ResultLog(bus, publisher)
        key = SliceKey("b", 0, 0)
        record = Attempt(worker="w", attempt=1, seconds=0.0, end="failed")
        for _ in range(2):
            await log.publish_attempt(key, record)
        await log.publish_attempt(key, record.model_copy(update={"attempt": 2}))
        assert [one.attempt for one in await log.attempts(key)] == [1, 2]
