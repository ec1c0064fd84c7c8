"""The streams of a run as its coordinator uses them."""

from __future__ import annotations

from dataclasses import dataclass

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.journal import Journal
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.tasks import TaskQueue


@dataclass(frozen=True, slots=True)
class RunStreams:
    """Queue, results and journal of one run over one connection."""

    bus: Bus
    publisher: Publisher
    journal: Journal
    queue: TaskQueue
    results: ResultLog

    @classmethod
    def over(cls, bus: Bus) -> RunStreams:
        """All of them over ``bus``; the publisher is to be started and closed by the caller."""
        publisher = Publisher(bus)
        return cls(
            bus, publisher, Journal(bus), TaskQueue(bus, publisher), ResultLog(bus, publisher)
        )
