"""Ownership of background tasks: each is started, awaited, and its failure surfaces."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

_CANCEL_AGAIN_S = 1.0


class Crew:
    """Background tasks of one owner.

    The first task that fails resolves :meth:`failed`; :meth:`close` cancels and awaits all.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run ``work`` until it ends or the crew is closed."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        return task

    async def failed(self) -> BaseException:
        """Wait for the first failure of any task and return it."""
        return await asyncio.shield(self._failed)

    @property
    def failure(self) -> BaseException | None:
        """The first failure so far."""
        return self._failed.result() if self._failed.done() else None

    async def close(self) -> None:
        """Cancel every task and wait until all have ended; safe to call twice."""
        mine = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not mine]:
            for task in tasks:
                task.cancel()
            # Again after a while: library code may lose a cancel.
            await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _settle(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_result(error)


class Pulse:
    """Wakes everybody who waits for a change; a change nobody waits for is not remembered.

    On one event loop, looking at state and then calling :meth:`wait` without an ``await`` between
    cannot miss a change.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Wake the waiters of this moment."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the next beat, at most ``seconds``; False when the time ran out first."""
        event = self._event
        try:
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
                await event.wait()
        except TimeoutError:
            return False
        return True
