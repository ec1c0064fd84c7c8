"""Running a process's main coroutine until a signal asks it to stop."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import Awaitable, Callable

import uvloop


def run_until_signal(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run ``main(stop)``; SIGTERM and SIGINT set ``stop``. SIGUSR2 dumps the stacks of all threads.

    Returns the exit code 0; what ``main`` raises passes through.
    """

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    faulthandler.register(signal.SIGUSR2, all_threads=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())
    return 0
