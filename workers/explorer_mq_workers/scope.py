"""The time in which a run may use the engine: it ends with the run, whatever the run's code does."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_workers.activity import Activity
from explorer_mq_workers.engines.protocol import Completion

T = TypeVar("T")
_MOST_REFUSALS = 3

Request = Callable[[], Coroutine[Any, Any, list[Completion]]]


class RunScope:
    """What all models of one run share: requests in flight, progress, and the end of both.

    Leaving the context aborts the requests in flight. Code that still runs afterwards, in a
    thread nobody can stop or in an asyncio task it left behind, gets a ``CancelledError`` for
    further requests: no ``except Exception`` keeps it going.
    """

    def __init__(self, activity: Activity | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._activity = activity or Activity()
        self._activity.add(self)
        self._ended = False
        self._refusals = 0
        self.requests: set[asyncio.Task[list[Completion]]] = set()
        """Requests in flight."""
        self.calls = 0
        """Requests made so far."""
        self.tokens = 0
        """Tokens sampled so far by requests that ended."""
        self.state: dict[str, Any] = {}
        """What the workflow noted about itself."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        await asyncio.gather(*self.requests, return_exceptions=True)

    def end(self) -> None:
        """Abort the requests in flight and refuse further ones."""
        self._ended = True
        for request in self.requests:
            request.cancel()

    def note_progress(self) -> None:
        """The run is alive; may be called from any thread."""
        self._activity.mark()

    async def request(self, send: Request) -> list[Completion]:
        """What the engine answers; may be awaited on any event loop.

        Raises:
            CancelledError: the run has ended.
        """
        if asyncio.get_running_loop() is self._loop:
            return await self._request(send)
        return await asyncio.wrap_future(self._submit(self._request(send)))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is run on the worker's event loop, from a thread.

        Raises:
            InvalidRequest: called on an event loop, which it would block.
            CancelledError: the run has ended.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise InvalidRequest(
                "await the _async method here: this one would block the event loop"
            )
        try:
            return self._submit(work).result()
        except concurrent.futures.CancelledError as error:
            raise asyncio.CancelledError("the run has ended") from error

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._ended or self._loop.is_closed():
            work.close()
            raise asyncio.CancelledError("the run has ended")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _request(self, send: Request) -> list[Completion]:
        if self._ended:
            await self._refuse()
        request = self._loop.create_task(send(), name="engine request")
        self.requests.add(request)
        self.calls += 1
        self._activity.mark()
        try:
            completions = await request
            self.tokens += sum(len(one.token_ids) for one in completions)
        finally:
            self.requests.discard(request)
            self._activity.answered()
        return completions

    async def _refuse(self) -> None:
        """End a run's code that still asks; code that will not be ended is put to rest.

        A loop that swallows ``CancelledError`` and asks again would never let others run.
        """
        self._refusals += 1
        if self._refusals > _MOST_REFUSALS:
            await self._loop.create_future()
        raise asyncio.CancelledError("the run has ended")
