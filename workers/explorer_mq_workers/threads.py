"""User code that blocks runs in daemon threads of its own, never on the worker's event loop.

A thread pool would not do: its size would limit the runs, and the interpreter waits for a pool's
threads at exit, so that one hung workflow would keep a worker from stopping.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Ended(Generic[T]):
    """What a thread came to; a future itself cannot hold every exception (StopIteration)."""

    result: T | None = None
    error: BaseException | None = None


async def in_thread(function: Callable[[], T], *, name: str) -> T:
    """What ``function`` returns or raises, from a daemon thread called ``name``.

    Cancelling ends the waiting at once; the thread goes on and what it comes to is dropped.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_Ended[T]] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome = _Ended(result=context.run(function))
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            outcome = _Ended(error=error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, ended, outcome)

    threading.Thread(target=work, name=name, daemon=True).start()
    outcome = await ended
    if outcome.error is not None:
        raise outcome.error
    return outcome.result  # type: ignore[return-value] # None only if T allows it


async def in_thread_loop(start: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
    """As :func:`in_thread` for a coroutine, on an event loop of that thread.

    Cancelling cancels the coroutine there too, but does not wait for it.
    """
    inner = asyncio.new_event_loop()

    def work() -> T:
        with asyncio.Runner(loop_factory=lambda: inner) as runner:
            return runner.run(start())

    try:
        return await in_thread(work, name=name)
    except asyncio.CancelledError:
        with suppress(RuntimeError):  # it has just ended by itself
            inner.call_soon_threadsafe(_cancel_all, inner)
        raise


def _settle(ended: asyncio.Future[_Ended[T]], outcome: _Ended[T]) -> None:
    if not ended.done():
        ended.set_result(outcome)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
