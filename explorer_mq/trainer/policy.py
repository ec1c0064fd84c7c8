"""Publishing a policy version: weights first, then the announcement that makes it visible."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.objects import put_object
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.state import RunState
from explorer_mq.trainer.weights import pack_weights
from explorer_mq_schemas.errors import BusUnavailable, InvalidRequest, NotFound
from explorer_mq_schemas.messages import ObjectRef
from explorer_mq_schemas.policy import PolicyAnnouncement
from explorer_mq_schemas.trainers import TrainerPhase, TrainerState, trainer_key

logger = logging.getLogger(__name__)

_KEY = "policy"
_TRIES = 3


class PolicyWriter:
    """Announces the policy versions of one trainer."""

    def __init__(self, bus: Bus, publisher: Publisher, trainer: str) -> None:
        self._bus = bus
        self._publisher = publisher
        self._trainer = trainer
        self._state = RunState(bus)
        self._one_at_a_time = asyncio.Lock()

    async def tell_phase(self, phase: TrainerPhase) -> None:
        """Let explorers know what this trainer is doing.

        Raises:
            TransientError: the server did not confirm it.
        """
        state = TrainerState(trainer=self._trainer, phase=phase, at=self._bus.now())
        await self._state.put(trainer_key(self._trainer), state.encode())

    async def newest(self) -> PolicyAnnouncement | None:
        """What is announced now."""
        value = await self._state.get(_KEY)
        return None if value is None else PolicyAnnouncement.decode(value)

    async def publish(
        self, weights: Mapping[str, Any] | str | os.PathLike[str], version: int
    ) -> PolicyAnnouncement:
        """Store ``weights`` under ``version`` and announce it; see ``TrainerClient``."""
        async with self._one_at_a_time:
            previous = await self._previous(version)
            if not isinstance(weights, Mapping):
                return await self._announce(version, path=_checked(weights))
            buffer = await asyncio.to_thread(pack_weights, weights)
            return await self._store(version, buffer, previous)

    async def publish_file(self, path: Path, version: int) -> PolicyAnnouncement:
        """As :meth:`publish`, for one safetensors file, sent through the server as it is."""
        async with self._one_at_a_time:
            previous = await self._previous(version)
            buffer = bytearray(await asyncio.to_thread(path.read_bytes))
            return await self._store(version, buffer, previous)

    async def _previous(self, version: int) -> PolicyAnnouncement | None:
        previous = await self.newest()
        if previous is not None and version <= previous.version:
            raise InvalidRequest(
                f"policy version {version} of run {self._bus.names.run}: version "
                f"{previous.version} is announced already, versions must grow"
            )
        return previous

    async def _store(
        self, version: int, buffer: bytearray, previous: PolicyAnnouncement | None
    ) -> PolicyAnnouncement:
        ref = await self._upload(version, buffer)
        announced = await self._announce(version, ref=ref)
        await self._forget_before(version if previous is None else previous.version)
        return announced

    async def _announce(
        self, version: int, *, ref: ObjectRef | None = None, path: str | None = None
    ) -> PolicyAnnouncement:
        announcement = PolicyAnnouncement(
            version=version,
            channel="path" if ref is None else "object",
            object=ref,
            path=path,
            trainer=self._trainer,
            announced_at=self._bus.now(),
        )
        await self._state.put(_KEY, announcement.encode())
        logger.info("run=%s policy version=%d announced", self._bus.names.run, version)
        return announcement

    async def _upload(self, version: int, buffer: bytearray) -> ObjectRef:
        """Chunks of an earlier attempt at this version are removed: readers take the first copy."""
        names = self._bus.names
        for left in reversed(range(_TRIES)):
            try:
                await self._purge({"filter": f"{names.weights(version)}.*"})
                return await put_object(self._publisher, names.weights(version), buffer)
            except BusUnavailable as error:
                if not left:
                    raise
                logger.warning("policy version=%d is uploaded again: %s", version, error)
        raise AssertionError("unreachable")

    async def _forget_before(self, version: int) -> None:
        """Remove all weights older than ``version``; workers may still be reading that one."""
        names = self._bus.names
        try:
            first = await self._bus.api(
                f"STREAM.MSG.GET.{names.weights_stream}",
                {"last_by_subj": f"{names.weights(version)}.0"},
            )
        except NotFound:
            return
        await self._purge({"seq": int(first["message"]["seq"])})

    async def _purge(self, body: Mapping[str, object]) -> None:
        await self._bus.api(f"STREAM.PURGE.{self._bus.names.weights_stream}", body)


def _checked(path: str | os.PathLike[str]) -> str:
    directory = Path(path).absolute()
    if not any(directory.glob("*.safetensors")):
        raise InvalidRequest(
            f"weights: {directory} is not a directory with safetensors files; write the "
            "checkpoint completely before announcing it"
        )
    return str(directory)
