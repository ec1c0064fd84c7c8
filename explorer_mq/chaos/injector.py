"""Carries the plan out on the world, and undoes what lasts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from explorer_mq.chaos.feed import Progress, Recoveries
from explorer_mq.chaos.plan import Fault, FaultKind
from explorer_mq.chaos.processes import Child
from explorer_mq.chaos.proxy import CALM, Mood
from explorer_mq.chaos.server import NO_ROOM_BYTES
from explorer_mq.chaos.world import World
from explorer_mq.crew import Crew

T = TypeVar("T")

_HOLD_S = 0.05
_REPEAT = 0.3

# What a coordinator logs when it has begun to lead.
_LEADS = b" ready"
_STANDBY_EVERY = 5
# Time an armed standby gets to start before the leader is killed.
_START_S = 1.5

_HOLDS_UP = {
    FaultKind.KILL_AT_STEP: Progress.DECISION,
    FaultKind.KILL_WORKER: Progress.RESULT,
    FaultKind.KILL_SERVER: Progress.RESULT,
    FaultKind.KILL_TRAINER: Progress.TRAINER,
    FaultKind.KILL_EVERYTHING: Progress.CLOSED,
}


class Injector:
    """Strikes one fault after the other; ``counts`` has those that hit something."""

    def __init__(self, world: World, recoveries: Recoveries) -> None:
        self._world = world
        self._recoveries = recoveries
        self._lasting = Crew()
        self.counts: Counter[FaultKind] = Counter()
        world.on_step_kill = lambda: self._count(FaultKind.KILL_AT_STEP)

    @property
    def kills(self) -> int:
        """Faults that killed: the whole world at once counts once."""
        return sum(count for kind, count in self.counts.items() if kind.is_kill)

    async def run(
        self, faults: Iterator[Fault], stop: asyncio.Event, on_fault: Callable[[Fault], None]
    ) -> None:
        """Strike until ``stop`` is set, then leave a healthy world.

        Raises:
            Exception: what a lasting fault failed with, a defect of the harness.
        """
        for fault in faults:
            try:
                async with asyncio.timeout(fault.after_s):
                    await stop.wait()
            except TimeoutError:
                on_fault(fault)
                self._strike(fault)
                if self._lasting.failure is not None:
                    raise self._lasting.failure from None
                continue
            break
        await self._lasting.close()
        self._world.calm()

    def _strike(self, fault: Fault) -> None:
        world = self._world
        match fault.kind:
            case FaultKind.KILL_COORDINATOR:
                self._kill_coordinator(self._coordinator(fault))
            case FaultKind.KILL_WORKER:
                self._count(fault.kind, _pick(world.workers, fault).kill())
            case FaultKind.KILL_TRAINER:
                self._count(fault.kind, _pick(world.trainers, fault).kill())
            case FaultKind.KILL_SERVER:
                self._kill_server()
                self._count(fault.kind)
            case FaultKind.KILL_EVERYTHING:
                for child in world.children:
                    child.kill()
                self._kill_server()
                self._count(fault.kind)
            case _:
                self._lasting.start(self._last(fault), name=f"fault {fault.kind}")

    async def _last(self, fault: Fault) -> None:
        """A fault that has an end of its own."""
        world = self._world
        proxy = _pick(world.proxies, fault)
        match fault.kind:
            case FaultKind.KILL_AT_STEP:
                await self._arm(fault)
            case FaultKind.STOP_COORDINATOR:
                await self._stop_for(self._coordinator(fault), fault)
            case FaultKind.STOP_WORKER:
                await self._stop_for(_pick(world.workers, fault), fault)
            case FaultKind.STOP_SERVER:
                world.shake()
                if world.server.stop():
                    self._count(fault.kind)
                    await self._pass(fault.seconds)
                    world.shake()
                    world.server.resume()
            case FaultKind.CUT:
                self._count(fault.kind, bool(proxy.cut()))
            case FaultKind.STALL:
                self._count(fault.kind)
                proxy.stall()
                await self._pass(fault.seconds)
                proxy.resume()
            case FaultKind.DELAY | FaultKind.DUPLICATE:
                self._count(fault.kind)
                is_delay = fault.kind is FaultKind.DELAY
                proxy.mood = Mood(hold_s=_HOLD_S) if is_delay else Mood(repeat=_REPEAT)
                await self._pass(2 * fault.seconds)
                proxy.mood = CALM
            case FaultKind.DISK_FULL:
                self._count(fault.kind)
                await self._fill_disk(fault.seconds)
            case _:
                raise AssertionError(fault.kind)

    async def _stop_for(self, child: Child, fault: Fault) -> None:
        if child.stop():
            self._count(fault.kind)
            await self._pass(fault.seconds)
            child.resume()

    async def _fill_disk(self, seconds: float) -> None:
        world = self._world
        world.shake()
        world.server.limit(NO_ROOM_BYTES)
        try:
            await self._pass(seconds)
        finally:
            world.shake()
            world.server.limit(None)

    async def _pass(self, seconds: float) -> None:
        """Let ``seconds`` go by; the end of the run cancels it."""
        never = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await never.wait()
        except TimeoutError:
            return

    def _coordinator(self, fault: Fault) -> Child:
        """Mostly the leader: killing a standby is the lesser fault."""
        coordinators = self._world.coordinators
        leaders = [child for child in coordinators if child.has_logged(_LEADS)]
        is_any = fault.target % _STANDBY_EVERY == 0
        return _pick(coordinators if is_any or not leaders else leaders, fault)

    def _kill_coordinator(self, child: Child, *, then_at: str = "") -> None:
        leads = child.has_logged(_LEADS)
        if child.arm(then_at):
            self.counts[FaultKind.KILL_COORDINATOR] += 1
            if leads:
                self._recoveries.begin(Progress.DECISION)

    async def _arm(self, fault: Fault) -> None:
        """Make one coordinator die at the fault's step, and see to it that it leads.

        The kills on the way are from outside; the one at the step counts when it comes.
        """
        coordinators = self._world.coordinators
        behind = [child for child in coordinators if not child.has_logged(_LEADS)]
        self._kill_coordinator(_pick(behind or coordinators, fault), then_at=fault.step)
        if behind:
            await self._pass(_START_S)
            for child in coordinators:
                if child.has_logged(_LEADS):
                    self._kill_coordinator(child)

    def _kill_server(self) -> None:
        self._world.shake()
        self._world.server.kill()

    def _count(self, kind: FaultKind, hit: bool = True) -> None:
        if hit:
            self.counts[kind] += 1
            if kind in _HOLDS_UP:
                self._recoveries.begin(_HOLDS_UP[kind])


def _pick(candidates: Sequence[T], fault: Fault) -> T:
    return candidates[fault.target % len(candidates)]
