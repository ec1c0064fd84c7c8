"""The bus against a real nats-server: publishes, ordered reads, objects, journal, results, queue."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from explorer_mq.bus.actors import ActorHandle, serve_actor
from explorer_mq.bus.connection import Bus, BusOptions, JetStreamError
from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.journal import Journal
from explorer_mq.bus.objects import get_object, get_object_file, put_object
from explorer_mq.bus.publisher import OutMessage, Publisher, publish_atomic
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.state import RunState
from explorer_mq.bus.tasks import TaskQueue, TaskSource
from explorer_mq.bus.topology import diff, ensure, ensure_pool
from explorer_mq.crew import Crew
from explorer_mq_schemas.errors import (
    BusUnavailable,
    ConfigError,
    ContractError,
    FencedError,
    InvalidRequest,
    NotFound,
)
from explorer_mq_schemas.journal import Running
from explorer_mq_schemas.results import Attempt, Result
from explorer_mq_schemas.subjects import Lane, SliceKey
from explorer_mq_schemas.tasks import Slice, Task


@pytest.fixture
async def publisher(bus):
    async with Publisher(bus) as opened:
        yield opened


def make_slice(task=0, number=0, batch="b", **changes):
    return Slice(batch=batch, task_number=task, number=number, run_ids=(0,), task=Task(), **changes)


async def test_connect_names_url_and_remedy_when_nothing_listens():
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:9 .*explorer-mq nats"):
        options = BusOptions(url="nats://user:secret@127.0.0.1:9", connect_timeout_s=0.5)
        await Bus.connect("run", options)


async def test_connect_never_shows_the_password():
    with pytest.raises(BusUnavailable) as caught:
        options = BusOptions(url="nats://user:secret@127.0.0.1:9", connect_timeout_s=0.5)
        await Bus.connect("run", options)
    assert "secret" not in str(caught.value)


async def test_topology_is_complete_after_ensure(bus):
    assert await diff(bus) == []
    assert await ensure(bus) == []


async def test_second_server_on_a_store_is_refused(nats_server):
    other = EmbeddedServer(nats_server.store_dir, run="other")
    with pytest.raises(ConfigError, match="in use by run tests, pid"):
        other.start()


async def test_taken_port_is_named(nats_server, tmp_path):
    other = EmbeddedServer(tmp_path, run="other", port=nats_server.port)
    with pytest.raises(ConfigError, match=f"port {nats_server.port}"):
        other.start()


async def test_publisher_keeps_order_within_its_window(bus, publisher):
    subject = bus.names.object("many")
    acks = [await publisher.publish(f"{subject}.{i}", b"x") for i in range(2000)]
    seqs = [(await ack).seq for ack in acks]
    assert seqs == sorted(seqs)


async def test_publisher_refuses_what_the_server_would(bus, publisher):
    with pytest.raises(ContractError, match="exceeds"):
        await publisher.publish(bus.names.object("big"), bytes(bus.max_payload_bytes + 1))


async def test_atomic_batch_is_all_or_nothing(bus):
    messages = [OutMessage(bus.names.journal, b"{}") for _ in range(1000)]
    ack = await publish_atomic(bus, messages, expect_last_seq=0)
    assert ack.seq == 1000
    with pytest.raises(JetStreamError) as caught:
        await publish_atomic(bus, messages[:10], expect_last_seq=5)
    assert caught.value.err_code == 10071
    info = await bus.api(f"STREAM.INFO.{bus.names.journal_stream}")
    assert info["state"]["messages"] == 1000


async def test_follower_reads_on_after_the_server_was_killed(server, run, connect):
    bus = await connect(server.url)
    await ensure(bus)
    prefix = bus.names.object("f")
    async with Publisher(bus) as publisher:
        for number in range(700):
            await publisher.publish(f"{prefix}.{number}", b"%d" % number)
        stream = bus.names.results_stream
        async with Follower(bus, stream, [f"{prefix}.>"], batch=100) as follower:
            seen = []
            while len(seen) < 700:
                seen += await follower.next_batch()
            back = asyncio.Event()
            bus.on_reconnect(back.set)
            server.restart()
            async with asyncio.timeout(10):
                await back.wait()
                for number in range(700, 900):
                    await publisher.publish_wait(f"{prefix}.{number}", b"%d" % number)
                while len(seen) < 900:
                    seen += await follower.next_batch()
    assert [int(message.data) for message in seen] == list(range(900))


async def test_follower_without_payloads_still_sees_headers(bus, publisher):
    await publisher.publish_wait(bus.names.object("h", "0"), b"payload", {"Key": "value"})
    stream, filters = bus.names.results_stream, [bus.names.all_objects]
    async with Follower(bus, stream, filters, headers_only=True) as follower:
        (message,) = await follower.catch_up()
    assert (message.data, message.headers["Key"]) == (b"", "value")


async def test_object_survives_the_round_trip(bus, publisher, tmp_path):
    payload = bytes(range(256)) * 8000
    ref = await put_object(publisher, bus.names.object("o"), payload)
    assert ref.chunks == 4
    assert await get_object(bus, bus.names.results_stream, ref) == payload
    target = tmp_path / "file"
    await get_object_file(bus, bus.names.results_stream, ref, target)
    assert target.read_bytes() == payload


async def test_damaged_object_is_refused(bus, publisher, tmp_path):
    ref = await put_object(publisher, bus.names.object("o"), b"payload")
    wrong = ref.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ContractError, match="sha256"):
        await get_object_file(bus, bus.names.results_stream, wrong, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    lost = ref.model_copy(update={"chunks": 2})
    with pytest.raises(NotFound, match="1 of 2 chunks"):
        await get_object(bus, bus.names.results_stream, lost)


async def test_journal_replays_and_fences_an_intruder(bus, connect):
    async def batches(journal):
        return [entry.batch for entry in (await journal.replay())[1]]

    first, second = Journal(bus), Journal(await connect())
    async with Crew() as crew:
        await first.replay()
        crew.start(first.run(), name="first")
        assert await first.append(Running(batch=1), Running(batch=2)) == 2
        assert await batches(second) == [1, 2]
        crew.start(second.run(), name="second")
        await second.append(Running(batch=3))
        with pytest.raises(FencedError, match="lost leadership"):
            await first.append(Running(batch=4))
        with pytest.raises(FencedError, match="lost leadership"):
            await first.append(Running(batch=5))
        await second.append(Running(batch=6))
    assert await batches(Journal(bus)) == [1, 2, 3, 6]


async def test_journal_writes_what_a_cancelled_caller_asked_for(bus):
    journal, stored = Journal(bus), []
    await journal.replay()
    async with Crew() as crew:
        asking = asyncio.create_task(
            journal.append(Running(batch=1), then=lambda: stored.append(journal.last_seq))
        )
        await asyncio.wait([asking], timeout=0)
        asking.cancel()
        crew.start(journal.run(), name="journal")
        await journal.append(Running(batch=2))
    assert stored == [2], "both were gathered into one write"
    _, entries = await Journal(bus).replay()
    assert [entry.batch for entry in entries] == [1, 2]


async def test_first_result_of_a_slice_is_the_only_one(bus, publisher, connect):
    log = ResultLog(bus, publisher)
    key = SliceKey("a batch.*>", 3, 0)
    first = Result(worker="one", attempt=1, seconds=0.1, run_ids=(0,), completed=(0,))
    late = first.model_copy(update={"worker": "two", "seconds": 0.2})
    assert await log.publish(key, first, b"first")
    assert not await log.publish(key, late, b"late")
    assert await log.publish(key, first, b"first"), "a repeat of one's own result is accepted"
    async with log.follow(1) as follower:
        ((found, stored),) = [log.parse(message) for message in await follower.catch_up()]
    assert (found, stored) == (key, first)


async def test_result_over_the_limit_travels_in_chunks(bus, publisher):
    log = ResultLog(bus, publisher)
    key = SliceKey("big", 0, 0)
    payload = bytes(bus.max_payload_bytes + 5)
    result = Result(worker="w", attempt=1, seconds=0.1, run_ids=(0,), completed=(0,))
    assert await log.publish(key, result, payload)
    assert await log.payload(await log.last_seq()) == payload


async def test_state_keeps_the_newest_value_of_a_key(bus):
    state = RunState(bus)
    assert await state.get("policy") is None
    await state.put("policy", b"1")
    await state.put("policy", b"2")
    assert await state.get("policy") == b"2"
    async with state.follow("policy") as follower:
        assert [message.data for message in await follower.next_batch()] == [b"2"]
        await state.put("policy", b"3")
        assert [message.data for message in await follower.next_batch()] == [b"3"]


@pytest.fixture
async def source(bus):
    opened = TaskSource(bus, ["default"], lease_s=2.0)
    await opened.start()
    yield opened
    await opened.close()
    await opened.stop_extending()


async def test_slices_of_a_lane_come_in_order_beside_urgent_ones(bus, publisher, source):
    queue = TaskQueue(bus, publisher)
    await queue.publish([make_slice(n) for n in range(3)])
    await queue.publish([make_slice(9, lane=Lane.URGENT)])
    assert len((await queue.queued())["b"]) == 4
    numbers = []
    source.add_credits(4)
    for _ in range(4):
        lease = await source.take()
        numbers.append(lease.slice.task_number)
        await lease.ack()
    assert [number for number in numbers if number != 9] == [0, 1, 2]
    assert 9 in numbers


async def test_publishing_slices_again_adds_nothing(bus, publisher):
    queue = TaskQueue(bus, publisher)
    await queue.publish([make_slice()])
    await queue.publish([make_slice()])
    assert (await queue.depth()).pending == 1


async def test_unsettled_slice_goes_to_another_worker_after_its_lease(bus, publisher, connect):
    await TaskQueue(bus, publisher).publish([make_slice()])
    dead = TaskSource(bus, ["default"], lease_s=2.0)
    await dead.start()
    dead.add_credits(1)
    assert (await dead.take()).delivery == 1
    await dead.stop_extending()
    heir = TaskSource(await connect(), ["default"], lease_s=2.0)
    await heir.start()
    heir.add_credits(1)
    async with asyncio.timeout(4):
        lease = await heir.take()
    assert lease.delivery == 2
    await lease.ack()
    for one in (dead, heir):
        await one.close()
        await one.stop_extending()


async def test_slice_handed_back_comes_again_at_once(bus, publisher, source):
    await TaskQueue(bus, publisher).publish([make_slice()])
    source.add_credits(2)
    await (await source.take()).hand_back()
    async with asyncio.timeout(1):
        lease = await source.take()
    assert lease.delivery == 2
    await lease.ack()


async def test_purged_batch_is_not_delivered(bus, publisher, source):
    queue = TaskQueue(bus, publisher)
    await queue.publish([make_slice(n, batch="gone") for n in range(5)])
    await queue.publish([make_slice(0, batch="kept")])
    assert await queue.purge("gone") == 5
    source.add_credits(1)
    lease = await source.take()
    assert lease.key.batch == "kept"
    await lease.ack()


async def test_malformed_message_is_marked_not_raised(bus, publisher, source):
    subject = bus.names.task("default", Lane.NORMAL, SliceKey("b", 0, 0))
    await publisher.publish_wait(subject, b"not json")
    source.add_credits(1)
    lease = await source.take()
    assert lease.slice is None
    assert "not JSON" in str(lease.error)
    await lease.terminate("malformed")


async def test_slice_over_the_limit_travels_as_an_object(bus, publisher, source):
    big = Task(raw_task={"prompt": "x" * bus.max_payload_bytes})
    one = make_slice().model_copy(update={"task": big})
    await TaskQueue(bus, publisher).publish([one])
    source.add_credits(1)
    lease = await source.take()
    assert lease.slice == one
    await lease.ack()


async def test_source_takes_up_work_after_the_server_was_killed(server, run, connect):
    bus = await connect(server.url)
    await ensure(bus)
    await ensure_pool(bus, "default", lease_s=2.0)
    source = TaskSource(bus, ["default"], lease_s=2.0)
    await source.start()
    source.add_credits(1)
    back = asyncio.Event()
    bus.on_reconnect(back.set)
    server.restart()
    async with asyncio.timeout(10):
        await back.wait()
        async with Publisher(bus) as publisher:
            await TaskQueue(bus, publisher).publish([make_slice()])
            lease = await source.take()
            await lease.ack()
    await source.close()
    await source.stop_extending()


async def test_actor_answers_and_its_errors_keep_their_type(bus, connect):
    async def double(*, number):
        return {"doubled": 2 * number}

    async def refuse():
        raise InvalidRequest("no")

    async def crash():
        raise KeyError("bug")

    methods = {"double": double, "refuse": refuse, "crash": crash}
    service = await serve_actor(bus, "thing", methods, version="1.0.0")
    handle = ActorHandle(await connect(), "thing")
    assert await handle.call("double", number=4) == {"doubled": 8}
    with pytest.raises(InvalidRequest, match="no"):
        await handle.call("refuse")
    with pytest.raises(Exception, match="KeyError"):
        await handle.call("crash")
    await service.close()
    with pytest.raises(NotFound, match="no thing is running"):
        await handle.call("double", number=4)


async def test_slow_call_does_not_block_another(bus, connect):
    gate = asyncio.Event()

    async def wait():
        await gate.wait()

    async def open_gate():
        gate.set()

    service = await serve_actor(bus, "thing", {"wait": wait, "open": open_gate}, version="1.0.0")
    handle = ActorHandle(await connect(), "thing")
    waiting = asyncio.ensure_future(handle.call("wait"))
    await handle.call("open")
    await waiting
    await service.close()


async def test_attempts_of_a_slice_are_kept_in_order(bus, publisher):
    log = ResultLog(bus, publisher)
    key = SliceKey("b", 1, 0)
    make = partial(Attempt, worker="w", seconds=0.0, end="failed")
    await log.publish_attempt(key, make(attempt=1))
    await log.publish_attempt(key, make(attempt=2))
    assert [attempt.attempt for attempt in await log.attempts(key)] == [1, 2]
