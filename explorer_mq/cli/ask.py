"""Asking a run's coordinator from a short-lived process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from explorer_mq.cli.command import Invocation

if TYPE_CHECKING:
    from explorer_mq.bus.connection import Bus
    from explorer_mq.settings import Settings

COORDINATOR = "coordinator"
WAIT_S = 20.0
"""Longest time one call may wait; the coordinator bounds it too, and callers repeat it."""

FINAL_STATES = frozenset(("finalized", "aborted"))

T = TypeVar("T")


def run_async(invocation: Invocation, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end; short-lived commands log errors only, their own is one line."""
    from explorer_mq.logs import configure_logging

    try:
        configure_logging(invocation.settings.log.model_copy(update={"level": "ERROR"}))
    except BaseException:
        work.close()
        raise
    return asyncio.run(work)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Bus]:
    """A bus that is closed at the end.

    Raises:
        BusUnavailable: NATS cannot be reached.
    """
    from explorer_mq.bus.connection import Bus

    async with await Bus.connect(settings.run, settings.nats.options("cli")) as bus:
        yield bus


def ask(invocation: Invocation, method: str, **arguments: Any) -> Any:
    """One call of the coordinator.

    Raises:
        NotFound: no coordinator runs, or it does not know the id.
        BusUnavailable: NATS cannot be reached.
    """

    async def call() -> Any:
        from explorer_mq.bus.actors import ActorHandle

        async with connected(invocation.settings) as bus:
            return await ActorHandle(bus, COORDINATOR).call(method, **arguments)

    return run_async(invocation, call())


async def wait_closed(bus: Bus, batch_id: int | str, limit_s: float | None) -> dict[str, Any]:
    """The batch's last view: its result, or its progress when ``limit_s`` passed first."""
    from explorer_mq.bus.actors import ActorHandle

    coordinator = ActorHandle(bus, COORDINATOR)
    end = None if limit_s is None else bus.now() + limit_s
    while True:
        left_s = WAIT_S if end is None else max(0.0, min(WAIT_S, end - bus.now()))
        view: dict[str, Any] = await coordinator.call(
            "wait_batch", timeout_s=left_s + 10.0, batch_id=batch_id, wait_s=left_s
        )
        if view["state"] in FINAL_STATES or (end is not None and bus.now() >= end):
            return view


def parse_batch_id(text: str) -> int | str:
    """Step numbers are integers, all other ids text."""
    return int(text) if text.isdecimal() and text == str(int(text)) else text
