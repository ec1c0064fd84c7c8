"""The coordinator's process: it leads its run as long as it lives, whatever the server goes through."""

from __future__ import annotations

import asyncio
import logging

from explorer_mq import __version__
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
    """Lead until cancelled or fenced; a start that the server's trouble cut off is made again."""
    while True:
        coordinator = RolloutCoordinator(bus, settings, name=name)
        services: list[ActorService] = []
        try:
            await ensure(bus, settings.streams.limits())
            await coordinator.prepare(standby=standby)
            services.append(await serve_coordinator(bus, coordinator, version=__version__))
            services.append(await serve_scheduler(bus, coordinator.scheduler, version=__version__))
            logger.info("coordinator of run %s ready", settings.run)
            text = f"coordinator {name} leads"
            await coordinator.scheduler.tell(Event(kind="leader", at=bus.now(), text=text))
            raise await coordinator.failed()
        except TransientError as error:
            logger.warning("coordinator of run %s starts over: %s", settings.run, error)
        finally:
            for service in services:
                await service.close()
            await coordinator.shutdown()
        await bus.wait_reconnect(_PAUSE_S)


def run_coordinator(settings: Settings, *, standby: bool = False) -> int:
    """The coordinator command: serve until SIGTERM or SIGINT."""
    return run_until_signal(lambda stop: serve_run(settings, stop, standby=standby))
