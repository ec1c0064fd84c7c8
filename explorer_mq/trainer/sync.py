"""The trainer's connection to a run, for plain scripts.

All network work runs on an event loop in a thread of its own: leases are extended while the script
computes, and Ctrl-C interrupts every wait of the script.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Self, TypeVar

from explorer_mq.bus.connection import BusOptions
from explorer_mq.trainer.batch import SyncTrainBatch
from explorer_mq.trainer.client import TrainerClient, Unreadable
from explorer_mq_schemas.errors import BusUnavailable
from explorer_mq_schemas.policy import PolicyAnnouncement

T = TypeVar("T")


class SyncTrainerClient:
    """:class:`~explorer_mq.trainer.client.TrainerClient` without an event loop; same arguments.

    Example:
        with SyncTrainerClient(run="demo") as client:
            for batch in client.batches():
                train_on(batch.arrays())
                client.publish_weights(model.state_dict(), version=version)
                batch.ack()

    Use it from one thread at a time, and do not fork while it is connected.
    """

    def __init__(
        self,
        run: str = "default",
        url: str | None = None,
        name: str = "trainer",
        *,
        prefetch: int = 2,
        lease_s: float = 30.0,
        unreadable: Unreadable = "raise",
        setup_timeout_s: float | None = None,
        options: BusOptions | None = None,
    ) -> None:
        self._client = TrainerClient(
            run,
            url,
            name,
            prefetch=prefetch,
            lease_s=lease_s,
            unreadable=unreadable,
            setup_timeout_s=setup_timeout_s,
            options=options,
        )
        self._thread: _LoopThread | None = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect, wait for the run to exist, and start fetching.

        Raises:
            BusUnavailable, PermissionRefused, NotFound: as ``TrainerClient.connect``.
        """
        self._thread = _LoopThread(f"trainer {self._client.name}")
        try:
            self._wait_for(self._client.connect)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hand back every batch that is not acknowledged and disconnect; idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.wait_for(self._client.close)
            finally:
                thread.stop()

    def batches(self) -> Iterator[SyncTrainBatch]:
        """Batches in the order in which they were finished, waiting for more for ever.

        Raises:
            NotFound, ContractError, BusUnavailable: as ``TrainerClient.batches``; failures of the
                background thread surface here.
        """
        while True:
            batch = self._wait_for(self._client.next_batch)
            yield SyncTrainBatch(batch, self._wait_for)

    def publish_weights(
        self, weights: Mapping[str, Any] | str | os.PathLike[str], version: int
    ) -> PolicyAnnouncement:
        """As ``TrainerClient.publish_weights``; returns when the version is announced."""
        return self._wait_for(lambda: self._client.publish_weights(weights, version))

    def policy(self) -> PolicyAnnouncement | None:
        """The newest announced policy version, None before the first."""
        return self._wait_for(self._client.policy)

    def _wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._thread is None:
            raise BusUnavailable(
                f"trainer {self._client.name} of run {self._client.run} is not connected; "
                "use `with`"
            )
        return self._thread.wait_for(work)


class _LoopThread:
    """An event loop in a daemon thread: a script that forgets to close can still end."""

    def __init__(self, name: str) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work()``, called in the loop; an interrupt of the caller cancels it.

        The coroutine is made in the loop's thread: an interrupt may strike between any two steps
        of this one and would leave a coroutine behind that nobody awaits.
        """
        future: Future[T] = Future()
        try:
            self._loop.call_soon_threadsafe(self._begin, work, future)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]], future: Future[T]) -> None:
        if future.cancelled():
            return
        task = self._loop.create_task(work())
        self._tasks.add(task)

        def give_up(abandoned: Future[T]) -> None:
            if abandoned.cancelled():
                self._loop.call_soon_threadsafe(task.cancel)

        def settle(_: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            error = CancelledError() if task.cancelled() else task.exception()
            if not future.set_running_or_notify_cancel():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())

        task.add_done_callback(settle)
        future.add_done_callback(give_up)
