"""The coordinator's process: it leads its run as long as it lives, whatever the server goes through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from explorer_mq import __version__
from explorer_mq.benchmark import Score
from explorer_mq.bus.actors import ActorService
from explorer_mq.bus.connection import Bus
from explorer_mq.bus.topology import ensure
from explorer_mq.coordinator import RolloutCoordinator
from explorer_mq.coordinator_actor import serve_coordinator
from explorer_mq.crew import Crew
from explorer_mq.running import run_until_signal
from explorer_mq.scheduler_actor import serve_scheduler
from explorer_mq.settings import Settings
from explorer_mq_schemas.errors import BusUnavailable, TransientError
from explorer_mq_schemas.events import Event
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.subjects import RunNames

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0


async def serve_run(settings: Settings, stop: asyncio.Event, *, standby: bool = False) -> None:
    """Set up the run, take up its batches and answer calls until ``stop`` is set.

    With ``explorer.tasksets`` it explores them and returns when they are used up.

    With ``standby`` it first waits, ready to lead, until the present leader ends.

    Raises:
        FencedError: another coordinator leads, or took over.
        BusUnavailable: NATS cannot be reached at the start.
    """
    name = RunNames(settings.run).connection("coordinator", new_id("coordinator"))
    async with await Bus.connect(settings.run, settings.nats.options(name)) as bus, Crew() as crew:
        ended = crew.start(stop.wait(), name="stop")
        leading = crew.start(_lead(bus, settings, name, standby=standby), name="lead")
        closed = crew.start(bus.wait_closed(), name="connection")
        await asyncio.wait((ended, leading, closed), return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            leading.result()
        if closed.done():
            raise BusUnavailable(f"NATS connection lost: {closed.result()}")


async def _lead(bus: Bus, settings: Settings, name: str, *, standby: bool) -> None:
    """Lead until fenced, cancelled or done; what the server's trouble cut off is started over."""
    while True:
        try:
            await ensure(bus, settings.streams.limits())
            if settings.explorer.tasksets:
                await _explore(bus, settings, name, standby=standby)
                return
            await _coordinate(bus, settings, name, standby=standby)
        except TransientError as error:
            logger.warning("coordinator of run %s starts over: %s", settings.run, error)
        await bus.wait_reconnect(_PAUSE_S)


async def _coordinate(bus: Bus, settings: Settings, name: str, *, standby: bool) -> None:
    coordinator = RolloutCoordinator(bus, settings, name=name)
    try:
        await coordinator.prepare(standby=standby)
        async with _services(bus, settings, coordinator, name):
            raise await coordinator.failed()
    finally:
        await coordinator.shutdown()


async def _explore(bus: Bus, settings: Settings, name: str, *, standby: bool) -> None:
    """Explore to the end of the task sets, answering calls meanwhile."""
    from explorer_mq.explorer import Explorer

    explorer = Explorer(bus, settings, name=name)
    try:
        await explorer.prepare(standby=standby)
        async with _services(bus, settings, explorer.coordinator, name), Crew() as crew:
            exploring = crew.start(explorer.explore(), name="explore")
            failed = crew.start(explorer.coordinator.failed(), name="failure")
            await asyncio.wait((exploring, failed), return_when=asyncio.FIRST_COMPLETED)
            if not exploring.done():
                raise failed.result()
            exploring.result()
        logger.info("run %s: all %d steps are done", settings.run, explorer.progress.finalized)
    finally:
        await explorer.shutdown()


@asynccontextmanager
async def _services(
    bus: Bus, settings: Settings, coordinator: RolloutCoordinator, name: str
) -> AsyncIterator[None]:
    services: list[ActorService] = []
    try:
        services.append(await serve_coordinator(bus, coordinator, version=__version__))
        services.append(await serve_scheduler(bus, coordinator.scheduler, version=__version__))
        logger.info("coordinator of run %s ready", settings.run)
        text = f"coordinator {name} leads"
        await coordinator.scheduler.tell(Event(kind="leader", at=bus.now(), text=text))
        yield
    finally:
        for service in services:
            await service.close()


async def serve_benchmark(settings: Settings, stop: asyncio.Event) -> list[Score]:
    """Evaluate the checkpoints that the settings name, and return their scores.

    Raises:
        ConfigError: there is nothing to evaluate.
        FencedError: a coordinator leads the run.
    """
    from explorer_mq.explorer import Explorer

    name = RunNames(settings.run).connection("coordinator", new_id("bench"))
    async with await Bus.connect(settings.run, settings.nats.options(name)) as bus, Crew() as crew:
        await ensure(bus, settings.streams.limits())
        explorer = Explorer(bus, settings, name=name)
        try:
            await explorer.prepare()
            async with _services(bus, settings, explorer.coordinator, name):
                ended = crew.start(stop.wait(), name="stop")
                scoring = crew.start(explorer.benchmark(), name="benchmark")
                await asyncio.wait((ended, scoring), return_when=asyncio.FIRST_COMPLETED)
                if not scoring.done():
                    raise TransientError("the benchmark was interrupted")
                scores: list[Score] = scoring.result()
                return scores
        finally:
            await explorer.shutdown()


def run_benchmark(settings: Settings) -> list[Score]:
    """The command's benchmark mode."""
    scores: list[Score] = []

    async def main(stop: asyncio.Event) -> None:
        scores.extend(await serve_benchmark(settings, stop))

    run_until_signal(main)
    return scores


def run_coordinator(settings: Settings, *, standby: bool = False) -> int:
    """The coordinator command: serve until SIGTERM or SIGINT."""
    return run_until_signal(lambda stop: serve_run(settings, stop, standby=standby))
