"""A chaos run from start to verdict.

Flow: start the world -> load and faults until time and minimums are reached -> calm -> every open
batch ends -> trainers have everything -> a restarted coordinator says the same -> audit -> report.
"""

from __future__ import annotations

import asyncio
import functools
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from explorer_mq.bus.actors import ActorHandle
from explorer_mq.bus.connection import Bus
from explorer_mq.bus.topology import wait_ready
from explorer_mq.chaos.audit import Delivery, audit
from explorer_mq.chaos.feed import Feed, Progress
from explorer_mq.chaos.injector import Injector
from explorer_mq.chaos.load import Load
from explorer_mq.chaos.plan import Fault, plan
from explorer_mq.chaos.processes import tail
from explorer_mq.chaos.report import Report
from explorer_mq.chaos.trainer import Deliveries, train
from explorer_mq.chaos.workload import planned_batch
from explorer_mq.chaos.world import LEASE_S, TRAINER, World
from explorer_mq.coordinator_actor import ACTOR, CoordinatorHandle
from explorer_mq.crew import Crew
from explorer_mq.running import run_until_signal
from explorer_mq_schemas.errors import ExplorerError, TransientError
from explorer_mq_schemas.ids import new_id

T = TypeVar("T")

_RESIDENT = "resident"
_TRAINERS = (_RESIDENT, TRAINER)
_START_S = 30.0
_FINISH_S = 60.0
_DELIVER_S = 30.0
_STUCK_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """How long and how hard; the run ends when the time is over and every minimum is reached."""

    seconds: float = 60.0
    seed: int = 1
    kills: int = 0
    batches: int = 0
    slices: int = 0
    interval_s: float = 1.5
    lanes: int = 4
    standby: bool = False
    keep: Path | None = None


def run_chaos(options: ChaosOptions) -> Report:
    """Do it; logs and streams are removed when all went well, else the report says where they are."""
    out = options.keep or Path(tempfile.mkdtemp(prefix="explorer-mq-chaos-"))
    out.mkdir(parents=True, exist_ok=True)
    chaos = ChaosRun(options, out)
    is_good = False
    try:
        run_until_signal(chaos.play)
        is_good = chaos.report.is_good
    finally:
        if is_good and options.keep is None:
            shutil.rmtree(out)
        else:
            _say(f"logs and streams: {out}")
    return chaos.report


class ChaosRun:
    """One run of the harness."""

    def __init__(self, options: ChaosOptions, out: Path) -> None:
        self._options = options
        self._out = out
        self.report = Report(seed=options.seed, standby=options.standby)

    async def play(self, stop: asyncio.Event) -> None:
        """Run to the verdict; ``stop`` ends the faults early."""
        options = self._options
        self._began = time.monotonic()
        self._deliveries = Deliveries(self._hear_delivery)
        self._world = World(
            self._out,
            new_id("chaos"),
            seed=options.seed,
            standby=options.standby,
            on_line=self._deliveries.hear,
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._world.close)
            await self._world.start()
            bus = await stack.enter_async_context(
                await Bus.connect(self._world.run, self._world.options())
            )
            await self._ready(bus)
            self._feed = Feed(bus)
            crew = await stack.enter_async_context(Crew())
            crew.start(self._feed.follow_results(), name="chaos results")
            crew.start(self._feed.follow_journal(), name="chaos journal")
            crew.start(
                train(self._world.run, self._world.server.url, _RESIDENT, self._deliveries),
                name="chaos trainer",
            )
            handle = CoordinatorHandle(bus)
            batch = functools.partial(planned_batch, options.seed, marks=self._world.marks)
            self._load = Load(handle, self._feed, batch, lanes=options.lanes)
            self._injector = Injector(self._world, self._feed.recoveries)
            await self._or_failure(self._inject(stop), crew)
            self.report.stalls = await self._or_failure(self._load.finish(_FINISH_S), crew)
            await self._or_failure(self._settle(handle, bus), crew)
        self._conclude()

    async def _ready(self, bus: Bus) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await wait_ready(bus, ["default"])
        except TimeoutError as error:
            words = tail(self._world.log("coordinator-0"))
            raise TransientError(
                f"no coordinator came up within {_START_S:g} s: {words}"
            ) from error

    async def _inject(self, stop: asyncio.Event) -> None:
        enough = asyncio.Event()
        async with Crew() as crew:
            crew.start(self._watch(stop, enough), name="chaos watch")
            faults = plan(
                self._options.seed,
                interval_s=self._options.interval_s,
                lease_s=LEASE_S,
                steps=_steps(),
            )
            await self._injector.run(faults, enough, self._tell)

    async def _watch(self, stop: asyncio.Event, enough: asyncio.Event) -> None:
        """Set ``enough`` when time and minimums are reached, or nothing goes on any more."""
        options = self._options
        closed, moved_at = 0, time.monotonic()
        while not stop.is_set():
            now = time.monotonic()
            if self._load.closed > closed:
                closed, moved_at = self._load.closed, now
            if now - moved_at > _STUCK_S:
                self.report.findings.append(f"no batch was closed for {_STUCK_S:g} s")
                break
            left_s = self._began + options.seconds - now
            if left_s <= 0 and (
                self._injector.kills >= options.kills
                and self._load.closed >= options.batches
                and len(self._feed.accepted) >= options.slices
            ):
                break
            try:
                async with asyncio.timeout(min(max(left_s, 0.2), 5.0)):
                    await stop.wait()
            except TimeoutError:
                continue
        enough.set()

    async def _settle(self, handle: CoordinatorHandle, bus: Bus) -> None:
        """Let trainers catch up, then compare what is known before and after a restart."""
        wanted = {
            one.planned.name
            for one in self._load.followed
            if one.planned.batch_type == "train" and one.state == "finalized"
        }
        end = time.monotonic() + _DELIVER_S
        while not all(wanted <= self._deliveries.names(name) for name in _TRAINERS):
            if not await self._feed.changed.wait(end - time.monotonic()):
                break
        await self._empty_queue(handle)
        before = await self._picture(handle, bus)
        for child in self._world.coordinators:
            child.kill()
        after = await self._picture(handle, bus)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                self.report.replay_differences += 1
                self.report.findings.append(
                    f"after a restart {name} is {after.get(name)}, it was {before.get(name)}"
                )

    async def _empty_queue(self, handle: CoordinatorHandle) -> None:
        """Slices that were given out twice are still being settled; none may stay for ever."""
        end = time.monotonic() + _DELIVER_S
        while True:
            status = await self._ask(handle.status)
            left = status["queued_slices"] + status["leased_slices"]
            if not left:
                return
            if time.monotonic() > end:
                self.report.stalls += 1
                self.report.findings.append(f"{left} slices stay in the queue of closed batches")
                return
            await self._feed.changed.wait(0.2)

    async def _picture(self, handle: CoordinatorHandle, bus: Bus) -> dict[str, Any]:
        """All a coordinator knows about batches."""
        listed: list[dict[str, Any]] = await self._ask(
            lambda: ActorHandle(bus, ACTOR).call("batches", timeout_s=3.0)
        )
        status = await self._ask(handle.status)
        picture = {f"batch {found['batch_id']}": found for found in listed}
        kept = ("batches", "queued_slices", "leased_slices")
        return {**picture, **{f"status {name}": status.get(name) for name in kept}}

    async def _ask(self, call: Any) -> Any:
        async with asyncio.timeout(_START_S):
            while True:
                try:
                    async with asyncio.timeout(3.0):
                        return await call()
                except (ExplorerError, TimeoutError):
                    await self._feed.changed.wait(0.2)

    def _conclude(self) -> None:
        report, feed, world = self.report, self._feed, self._world
        faults = audit(
            [one.submitted() for one in self._load.followed if one.is_acknowledged],
            self._deliveries.all,
            feed.accepted.values(),
            trainers=_TRAINERS,
        )
        report.kills = self._injector.kills
        report.slices = len(feed.accepted)
        report.batches = self._load.closed
        report.lost = len(faults.lost)
        report.duplicates = len(faults.duplicates)
        report.inconsistent = len(faults.inconsistent) + len(feed.malformed)
        report.recovered_p50_s = round(feed.recoveries.p50, 3)
        report.recovered_max_s = round(feed.recoveries.longest, 3)
        report.by_kind = {str(kind): count for kind, count in sorted(self._injector.counts.items())}
        report.by_step = dict(sorted(world.at_steps.items()))
        report.exits = dict(Counter(str(end.reason) for end in world.exits))
        report.unexpected_exits = [asdict(end) for end in world.unexpected_exits]
        report.redeliveries = len(self._deliveries.all) - len(
            {(one.trainer, one.batch) for one in self._deliveries.all}
        )
        report.repeated_messages = sum(proxy.repeated for proxy in world.proxies)
        report.refusals = dict(self._load.refusals.most_common(20))
        report.findings += [
            f"batch {one.planned.name} was unknown {one.unknown} times after its acknowledgement"
            for one in self._load.followed
            if one.unknown
        ]
        report.findings += [*faults.lost, *faults.duplicates, *faults.inconsistent, *feed.malformed]
        report.seconds = round(time.monotonic() - self._began, 1)

    async def _or_failure(self, work: Awaitable[T], crew: Crew) -> T:
        """The result of ``work``, unless a part of the harness fails first."""
        mine = asyncio.ensure_future(work)
        ends = [
            asyncio.create_task(failed(), name="failure")
            for failed in (crew.failed, self._world.failed, self._load.failed)
        ]
        try:
            await asyncio.wait((mine, *ends), return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done():
                    raise TransientError(f"the harness cannot go on: {end.result()!r}")
            return mine.result()
        finally:
            for task in (mine, *ends):
                task.cancel()
            await asyncio.gather(mine, *ends, return_exceptions=True)

    def _hear_delivery(self, delivery: Delivery) -> None:
        if delivery.trainer == TRAINER:
            self._feed.note(Progress.TRAINER)
        self._feed.changed.beat()

    def _tell(self, fault: Fault) -> None:
        seconds = time.monotonic() - self._began
        _say(
            f"[{seconds:6.1f} s] kills {self._injector.kills}, batches {self._load.closed}, slices "
            f"{len(self._feed.accepted)}; now {fault.kind} {fault.step}".rstrip()
        )


def _steps() -> list[str]:
    """Where a coordinator can be told to kill itself."""
    from explorer_mq.steps import Step

    return [step.value for step in Step]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
