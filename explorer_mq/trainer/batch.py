"""A finished batch as the trainer holds it: manifest, packed payloads, acknowledgement."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer_mq.trainer.arrays import concatenate, pad
from explorer_mq_schemas.batches import TrainBatchManifest
from explorer_mq_schemas.codec import Arrays, unpack, unpack_arrays
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.ids import BatchId

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Payload:
    """Packed experiences of one slice; ``task`` is the task's number in its batch, if known."""

    data: Buffer
    task: int | None = None


class BatchContent:
    """What both kinds of training batch offer.

    ``manifest`` describes the batch, ``parts`` are its payloads in the manifest's order.
    ``delivery`` is 1 the first time the trainer gets it and grows when it was not acknowledged
    before (a crash, a lost lease). Content never differs between deliveries.
    """

    def __init__(
        self, manifest: TrainBatchManifest, parts: Sequence[Payload], *, delivery: int = 1
    ) -> None:
        self.manifest = manifest
        self.delivery = delivery
        self.parts = tuple(parts)

    def __len__(self) -> int:
        """Number of experiences."""
        return self.manifest.experiences

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.batch_id!r}, experiences={len(self)}, delivery={self.delivery})"

    @property
    def batch_id(self) -> BatchId:
        """The batch's id within its run."""
        return self.manifest.batch

    @property
    def payloads(self) -> list[Buffer]:
        """Packed buffers in the manifest's order, see :mod:`explorer_mq_schemas.codec`."""
        return [part.data for part in self.parts]

    def experiences(self) -> list[Experience]:
        """One object per sample, unpacked on the first call; arrays are read-only views.

        Raises:
            ContractError: a payload is malformed or holds another number of samples than the
                manifest says.
        """
        return self._experiences

    def arrays(self) -> Arrays:
        """Columns of the whole batch, samples packed end to end; joined on the first call.

        Sample i is ``tokens[cu_seqlens[i]:cu_seqlens[i + 1]]``; its response starts at
        ``prompt_length[i]`` within it. An array ``F`` over responses (``logprobs``,
        ``action_mask``, ...) has offsets of its own, ``F.cu_seqlens``. All names, shapes and
        dtypes are those of :mod:`explorer_mq_schemas.codec`, plus ``task`` int64 [N]: equal numbers
        mean the same task, hence the same group.

        Raises:
            ContractError: as :meth:`experiences`.
        """
        return self._arrays

    def padded(self, *, pad_token_id: int = 0) -> Arrays:
        """:meth:`arrays` as rectangles, see :func:`explorer_mq.trainer.arrays.pad`."""
        return pad(self._arrays, pad_token_id=pad_token_id)

    @cached_property
    def _experiences(self) -> list[Experience]:
        found: list[Experience] = []
        for number, part in enumerate(self.parts):
            samples = unpack(part.data)
            self._check(number, len(samples))
            found.extend(samples)
        return found

    @cached_property
    def _arrays(self) -> Arrays:
        parts = [unpack_arrays(part.data) for part in self.parts]
        sizes = [len(part["prompt_length"]) for part in parts]
        for number, size in enumerate(sizes):
            self._check(number, size)
        joined = concatenate(parts)
        joined["task"] = self._tasks(sizes)
        return joined

    def _check(self, number: int, size: int) -> None:
        wanted = self.manifest.parts.experiences
        if number < len(wanted) and wanted[number] != size:
            raise ContractError(
                f"batch {self.batch_id} of run {self.manifest.run}: part {number} holds {size} "
                f"experiences, its manifest says {wanted[number]}"
            )

    def _tasks(self, sizes: Sequence[int]) -> NDArray[np.int64]:
        numbers = [part.task for part in self.parts if part.task is not None]
        if len(numbers) == len(sizes):
            return np.repeat(np.array(numbers, np.int64), sizes)
        seen: dict[str, int] = {}
        ids = (experience.eid.tid for experience in self._experiences)
        return np.array([seen.setdefault(tid, len(seen)) for tid in ids], np.int64)


class TrainBatch(BatchContent):
    """A training batch of :class:`~explorer_mq.trainer.client.TrainerClient`."""

    def __init__(
        self,
        manifest: TrainBatchManifest,
        parts: Sequence[Payload],
        ack: Callable[[], Coroutine[Any, Any, None]],
        *,
        delivery: int = 1,
    ) -> None:
        super().__init__(manifest, parts, delivery=delivery)
        self._ack = ack

    async def ack(self) -> None:
        """This batch is used up: never deliver it to this trainer again.

        Call it after the optimizer step. It returns once the server has confirmed; calling it
        again does nothing.

        Raises:
            BusUnavailable: the server did not confirm in time; the batch may come again.
        """
        await self._ack()


class SyncTrainBatch(BatchContent):
    """A training batch of :class:`~explorer_mq.trainer.sync.SyncTrainerClient`."""

    def __init__(
        self, batch: TrainBatch, wait_for: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    ) -> None:
        super().__init__(batch.manifest, batch.parts, delivery=batch.delivery)
        self._batch = batch
        self._wait_for = wait_for

    def ack(self) -> None:
        """As :meth:`TrainBatch.ack`, returning when the server has confirmed."""
        self._wait_for(self._batch.ack)
