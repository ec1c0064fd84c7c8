"""The trainer's connection to a run, for asyncio programs.

One background task pulls manifests and fetches their payloads ahead, another extends leases. Their
failure is raised by :meth:`TrainerClient.batches`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, Self

from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.bus.publisher import Publisher
from explorer_mq.trainer.backoff import until_reconnected
from explorer_mq.trainer.batch import Payload, TrainBatch
from explorer_mq.trainer.leases import BatchLease, BatchLeases, wait_for_run
from explorer_mq.trainer.payloads import read_payloads
from explorer_mq.trainer.policy import PolicyWriter
from explorer_mq_schemas.batches import TrainBatchManifest
from explorer_mq_schemas.errors import (
    BusUnavailable,
    ConfigError,
    ContractError,
    NotFound,
    TransientError,
)
from explorer_mq_schemas.ids import check_run, encode_token
from explorer_mq_schemas.policy import PolicyAnnouncement
from explorer_mq_schemas.trainers import TrainerPhase

logger = logging.getLogger(__name__)

Unreadable = Literal["raise", "skip"]

_TELL_S = 1.0


class TrainerClient:
    """Reads the finished batches of ``run`` and publishes policy versions.

    Each trainer ``name`` keeps its own position in the batches, so any number of trainers read the
    same run independently. Use one live client per name: a new one takes over the batches that the
    previous one of that name has not acknowledged.

    Leases are extended on the event loop. A loop that computes for longer than ``lease_s`` between
    awaits lets them run out; the client then drops the repeated delivery itself, but
    :class:`~explorer_mq.trainer.sync.SyncTrainerClient` suits such a program better.

    Args:
        run: name of the run.
        url: NATS server, or several separated by commas; wins over ``options.url``.
        name: whose position to use.
        prefetch: batches fetched ahead of the loop, at least 1; bounds memory.
        lease_s: how long a batch stays out when this process dies without another one of the same
            name starting; at least 1.
        unreadable: what to do with a batch whose payloads are gone or malformed: raise, leaving it
            in place, or log an error and pass it over for good.
        setup_timeout_s: how long to wait for a run whose coordinator has not started; None is
            without limit, with a warning in the log.
        options: credentials, certificates and time-outs of the connection.

    Raises:
        ConfigError: an argument is out of range.
        InvalidRequest: ``name`` is empty or too long.
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
        if prefetch < 1 or lease_s < 1:
            raise ConfigError("trainer: prefetch and lease_s must be at least 1")
        check_run(run)
        encode_token(name)
        given = options or BusOptions()
        self.run = run
        self.name = name
        self._options = dataclasses.replace(given, url=url or given.url, name=f"trainer/{name}")
        self._lease_s = lease_s
        self._skip = unreadable == "skip"
        self._setup_timeout_s = setup_timeout_s
        self._prefetch = prefetch
        self._ready: deque[TrainBatch] = deque()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._connected: contextlib.AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect, wait for the run to exist, and start fetching.

        Raises:
            BusUnavailable: no server answers.
            PermissionRefused: wrong credentials.
            NotFound: the run did not appear within ``setup_timeout_s``.
        """
        async with contextlib.AsyncExitStack() as stack:
            bus = await stack.enter_async_context(await Bus.connect(self.run, self._options))
            await self._wait_for_run(bus)
            publisher = await stack.enter_async_context(Publisher(bus))
            leases = BatchLeases(bus, self.name, lease_s=self._lease_s)
            stack.push_async_callback(leases.close)
            await leases.start()
            self._room = asyncio.Semaphore(self._prefetch)
            self._policy = PolicyWriter(bus, publisher, self.name)
            stack.push_async_callback(self._tell_phase, "stopped")
            await self._tell_phase("running")
            self._tasks = [
                asyncio.create_task(self._fetch(bus, leases), name="trainer fetch"),
                asyncio.create_task(leases.extend_forever(), name="trainer leases"),
                asyncio.create_task(self._watch(bus), name="trainer connection"),
            ]
            for task in self._tasks:
                task.add_done_callback(lambda _: self._changed.set())
            stack.push_async_callback(self._stop_tasks)
            self._connected = stack.pop_all()

    async def close(self) -> None:
        """Hand back every batch that is not acknowledged and disconnect; idempotent."""
        connected, self._connected = self._connected, None
        self._ready.clear()
        self._changed.set()
        if connected is not None:
            await connected.aclose()

    async def batches(self) -> AsyncIterator[TrainBatch]:
        """Batches in the order in which they were finished, waiting for more for ever.

        A batch that is not acknowledged when the client closes comes again next time.

        Raises:
            NotFound, ContractError: a batch cannot be read and ``unreadable`` is "raise"; or the
                trainer's position was deleted.
            BusUnavailable: the connection is lost for good, or the client is closed.
        """
        while True:
            yield await self.next_batch()

    async def next_batch(self) -> TrainBatch:
        """The next of :meth:`batches`.

        Raises:
            NotFound, ContractError, BusUnavailable: as :meth:`batches`.
        """
        while not self._ready:
            self._need_connection()
            self._raise_failure()
            self._changed.clear()
            await self._changed.wait()
        self._room.release()
        return self._ready.popleft()

    async def publish_weights(
        self, weights: Mapping[str, Any] | str | os.PathLike[str], version: int
    ) -> PolicyAnnouncement:
        """Make a new policy version known to all workers.

        Args:
            weights: state dict of torch tensors or numpy arrays with Hugging Face names, sent
                through the server (best up to some 256 MiB); or a checkpoint directory that all
                workers can read, of which only the path is sent.
            version: greater than every version published before.

        Returns:
            What was announced; ``object.sha256`` is the fingerprint of the weights.

        Raises:
            InvalidRequest: ``version`` is not greater, or the directory holds no weights.
            ContractError: a tensor is not finite or cannot be stored; nothing was published.
            BusUnavailable: the server did not answer; publishing again is safe.
        """
        self._need_connection()
        return await self._policy.publish(weights, version)

    async def require_sync(self) -> None:
        """Ask a trainer-driven explorer to take over the newest published weights.

        Raises:
            TransientError: the server did not confirm it.
        """
        self._need_connection()
        await self._policy.tell_phase("requires_sync")

    async def policy(self) -> PolicyAnnouncement | None:
        """The newest announced policy version, None before the first."""
        self._need_connection()
        return await self._policy.newest()

    async def _tell_phase(self, phase: TrainerPhase) -> None:
        """Tell explorers, if the server can take it: training does not depend on it."""
        try:
            async with asyncio.timeout(_TELL_S):
                await self._policy.tell_phase(phase)
        except (TransientError, TimeoutError) as error:
            logger.warning("trainer=%s could not say that it is %s: %s", self.name, phase, error)

    async def _wait_for_run(self, bus: Bus) -> None:
        try:
            async with asyncio.timeout(self._setup_timeout_s):
                await wait_for_run(bus)
        except TimeoutError as error:
            raise NotFound(
                f"run {self.run} does not exist at {self._options.shown_url} after "
                f"{self._setup_timeout_s:g} s; start its coordinator or check the name"
            ) from error

    def _raise_failure(self) -> None:
        """Raise what ended a background task, if one has ended."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _need_connection(self) -> None:
        if self._connected is None:
            raise BusUnavailable(
                f"trainer {self.name} of run {self.run} is not connected; use `async with`"
            )

    async def _fetch(self, bus: Bus, leases: BatchLeases) -> None:
        """Keep up to ``prefetch`` batches ready."""
        while True:
            await self._room.acquire()
            batch = None
            while batch is None:
                batch = await self._open(bus, await leases.take())
            self._ready.append(batch)
            self._changed.set()

    async def _open(self, bus: Bus, lease: BatchLease) -> TrainBatch | None:
        """The batch of ``lease``; None when it is passed over."""
        try:
            manifest = TrainBatchManifest.decode(lease.data)
            parts = await self._read(bus, manifest)
        except (NotFound, ContractError) as error:
            if not self._skip:
                raise
            logger.exception("trainer=%s passes over %s", self.name, lease.subject)
            await lease.terminate(str(error))
            return None
        return TrainBatch(manifest, parts, lease.ack, delivery=lease.delivery)

    async def _read(self, bus: Bus, manifest: TrainBatchManifest) -> list[Payload]:
        """Payloads, begun again when the server goes away meanwhile."""
        pause_s = 0.1
        while True:
            try:
                return await read_payloads(bus, manifest)
            except TransientError as error:
                logger.warning("batch=%s is read again: %s", manifest.batch, error)
            await until_reconnected(bus, at_most_s=pause_s)
            pause_s = min(2.0, 2 * pause_s)

    async def _watch(self, bus: Bus) -> None:
        reason = await bus.wait_closed()
        raise BusUnavailable(f"trainer {self.name} of run {self.run} lost its server: {reason}")

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                logger.debug("trainer=%s background task had ended: %r", self.name, end)
