from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from explorer_mq.bus import topology
from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.trainer.client import TrainerClient
from explorer_mq_schemas.batches import Parts, TrainBatchManifest
from explorer_mq_schemas.codec import pack
from explorer_mq_schemas.experiences import EID, Experience
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.results import Result
from explorer_mq_schemas.subjects import SliceKey


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store: Path = tmp_path_factory.mktemp("nats")
    with EmbeddedServer(store, run="trainer-tests") as running:
        yield running


class Run:
    """A run whose coordinator and workers are this test."""

    def __init__(self, server: EmbeddedServer, bus: Bus, publisher: Publisher) -> None:
        self.server = server
        self.name = bus.names.run
        self.bus = bus
        self.publisher = publisher
        self.results = ResultLog(bus, publisher)

    def client(self, name: str = "trainer", **options) -> TrainerClient:
        options.setdefault("lease_s", 2.0)
        return TrainerClient(self.name, self.server.url, name, **options)

    async def finish_batch(self, batch: int | str, tasks: int = 2, group: int = 2, filler: int = 0):
        """Publish one result per task, then the manifest over them, as the real actors do."""
        acks = []
        for task in range(tasks):
            payload = pack(samples(batch, task, group, filler))
            result = Result(
                worker="w",
                attempt=1,
                seconds=0.1,
                run_ids=tuple(range(group)),
                completed=tuple(range(group)),
                experiences=group,
                bytes=len(payload),
            )
            acks.append(await self.results.publish(SliceKey(str(batch), task, 0), result, payload))
        assert all(acks)
        return await self.publish_manifest(batch, tasks, group)

    async def publish_manifest(self, batch: int | str, tasks: int, group: int):
        names = self.bus.names
        info = await self.bus.api(
            f"STREAM.INFO.{names.results_stream}",
            {"subjects_filter": names.batch_results(str(batch))},
        )
        assert info["state"]["num_subjects"] >= tasks
        seqs = []
        for task in range(tasks):
            found = await self.bus.api(
                f"STREAM.MSG.GET.{names.results_stream}",
                {"last_by_subj": names.result(SliceKey(str(batch), task, 0))},
            )
            seqs.append(found["message"]["seq"])
        manifest = TrainBatchManifest(
            run=self.name,
            batch=batch,
            tasks=tasks,
            finished_task_count=tasks,
            runs=tasks * group,
            completed_runs=tasks * group,
            experiences=tasks * group,
            parts=Parts(stream=names.results_stream, seq=tuple(seqs), experiences=(group,) * tasks),
        )
        await self.publisher.publish_wait(names.train(str(batch), 0), manifest.encode())
        return manifest


def samples(batch: int | str, task: int, group: int, filler: int = 0) -> list[Experience]:
    """``group`` samples with one prompt token and run + 1 response tokens."""
    return [
        Experience(
            eid=EID(batch=batch, task=task, run=run, suffix="000000"),
            tokens=[task, *range(run + 1), *([7] * filler)],
            prompt_length=1,
            logprobs=[-0.5] * (run + 1 + filler),
            reward=float(run),
            policy_version_start=1,
            policy_version_end=1,
        )
        for run in range(group)
    ]


@pytest.fixture
async def run(server: EmbeddedServer) -> AsyncIterator[Run]:
    options = BusOptions(url=server.url, name="test")
    async with await Bus.connect(new_id("t"), options) as bus, Publisher(bus) as publisher:
        await topology.ensure(bus)
        yield Run(server, bus, publisher)
        await topology.remove(bus)
