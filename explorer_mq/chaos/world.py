"""Every process of a chaos run: server, coordinators, workers behind proxies, a trainer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from explorer_mq.bus.connection import BusOptions
from explorer_mq.chaos.processes import Child, Exit, Reason
from explorer_mq.chaos.proxy import CALM, Proxy
from explorer_mq.chaos.server import Server
from explorer_mq.crew import Crew

LEASE_S = 2.0
LEADER_TTL_S = 2
WORKERS = 3
TRAINER = "mortal"

_SLOTS = 6
_LATENCY_S = 0.04
_AFTERMATH_S = 20.0
"""How long after a fault of the server a process that starts may still find it unreachable."""

_SETTINGS = {
    "--scheduler.lease_s": str(LEASE_S),
    "--scheduler.leader_ttl_s": str(LEADER_TTL_S),
    # Two runs a slice: some 75 slices per batch.
    "--scheduler.max_repeat_times_per_runner": "2",
    # Infrastructure failures use attempts too: the budget must outlast a series of kills.
    "--scheduler.max_retry_times": "7",
    "--scheduler.retry_first_s": "0.05",
    "--scheduler.retry_longest_s": "0.4",
    "--scheduler.max_timeout_s": "30",
    "--scheduler.snapshot_results": "300",
    "--worker.beat_interval_s": "0.5",
    "--log.format": "text",
}


class World:
    """The processes of one run, and what became of them.

    Args:
        out: directory of logs and store.
        run: name of the run.
        seed: of the proxies.
        standby: whether a second coordinator stands by.
        on_line: takes the lines of the trainer process.
    """

    def __init__(
        self, out: Path, run: str, *, seed: int, standby: bool, on_line: Callable[[bytes], None]
    ) -> None:
        self.run = run
        self.exits: list[Exit] = []
        self.at_steps: Counter[str] = Counter()
        self.on_step_kill: Callable[[], None] = lambda: None
        self._out = out
        self._crew = Crew()
        self._shaken_at = time.monotonic()
        self.server = Server(out / "nats", run, on_exit=self._note)
        self.marks = out / "marks"
        self.marks.mkdir(parents=True)
        self.proxies: list[Proxy] = []
        self.coordinators: list[Child] = []
        self.workers: list[Child] = []
        self.trainers: list[Child] = []
        self._seed = seed
        self._standby = standby
        self._on_line = on_line

    async def start(self) -> None:
        """Start everything; the processes find each other."""
        self.server.start()
        flags = ["--standby"] if self._standby else []
        for number in range(2 if self._standby else 1):
            name = f"coordinator-{number}"
            child = self._child(name, ["coordinator", *flags], self.server.url)
            self.coordinators.append(child)
        for number in range(WORKERS):
            proxy = Proxy(self.server.port, seed=self._seed + number)
            await proxy.start()
            self.proxies.append(proxy)
            name = f"worker-{number}"
            engine = ["--worker.engine.type", "synthetic", "--worker.slots", str(_SLOTS)]
            engine += ["--worker.engine.latency_s", str(_LATENCY_S)]
            engine += ["--worker.engine.latency_jitter", "0.8"]
            engine += ["--worker.engine.seed", str(number), "--worker.id", name]
            self.workers.append(self._child(name, ["worker", *engine], proxy.url))
        trainer = Child(
            "trainer",
            ["explorer_mq.chaos.trainer", self.run, self.server.url, TRAINER],
            self.log("trainer"),
            on_exit=self._note,
            on_line=self._on_line,
        )
        self.trainers.append(trainer)
        for child in self.children:
            self._crew.start(child.run(), name=child.name)

    async def close(self) -> None:
        """End everything."""
        await self._crew.close()
        for proxy in self.proxies:
            await proxy.close()
        self.server.close()

    @property
    def children(self) -> list[Child]:
        """All processes but the server."""
        return [*self.coordinators, *self.workers, *self.trainers]

    def log(self, name: str) -> Path:
        """Where a child's output goes."""
        return self._out / f"{name}.log"

    def options(self) -> BusOptions:
        """How the harness itself connects: directly, as neither worker nor coordinator."""
        return BusOptions(url=self.server.url, name="chaos")

    def shake(self) -> None:
        """The server is about to be hit: for a while it may be unreachable for starting processes."""
        self._shaken_at = time.monotonic()

    def calm(self) -> None:
        """Undo every fault that lasts."""
        for child in self.children:
            child.resume()
        self.server.resume()
        for proxy in self.proxies:
            proxy.resume()
            proxy.mood = CALM

    async def failed(self) -> BaseException:
        """Wait for a defect of the harness itself."""
        return await self._crew.failed()

    @property
    def unexpected_exits(self) -> list[Exit]:
        """Ends that no fault explains."""
        return [end for end in self.exits if end.reason is Reason.UNEXPECTED]

    def _child(self, name: str, arguments: list[str], url: str) -> Child:
        settings = [word for pair in _SETTINGS.items() for word in pair]
        common = ["--run", self.run, "--nats.url", url, *settings]
        return Child(name, ["explorer_mq", *arguments, *common], self.log(name), on_exit=self._note)

    def _note(self, end: Exit) -> None:
        unshaken = time.monotonic() - self._shaken_at > _AFTERMATH_S
        if end.reason is Reason.UNREACHABLE and unshaken:
            end = Exit(end.name, end.code, Reason.UNEXPECTED, end.armed, end.words)
        self.exits.append(end)
        if end.reason is Reason.AT_STEP:
            self.at_steps[end.armed.partition(":")[0]] += 1
            self.on_step_kill()
