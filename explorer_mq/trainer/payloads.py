"""The payloads of one batch: a single ordered read over its parts, however many they are."""

from __future__ import annotations

import asyncio

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Follower, Received
from explorer_mq.bus.objects import get_object
from explorer_mq.trainer.batch import Payload
from explorer_mq_schemas.batches import TrainBatchManifest
from explorer_mq_schemas.errors import ContractError, NotFound
from explorer_mq_schemas.results import RESULT_HEADER, Result

_PROGRESS_S = 10.0
"""Silence after which the next part is looked up directly, to tell slow from removed."""


async def read_payloads(bus: Bus, manifest: TrainBatchManifest) -> list[Payload]:
    """Payloads in the manifest's order.

    Raises:
        NotFound: a part is gone (deleted, or past the stream's retention).
        ContractError: a part is not what the manifest says it is.
        TransientError: the server cannot be reached; trying again is safe.
    """
    wanted = manifest.parts.seq
    found: dict[int, Payload] = {}
    if wanted:
        stream = manifest.parts.stream
        filters = [_filter(bus, manifest)]
        async with Follower(bus, stream, filters, start_seq=min(wanted)) as follower:
            await _read(bus, manifest, follower, found)
    return [found[seq] for seq in wanted]


async def _read(
    bus: Bus, manifest: TrainBatchManifest, follower: Follower, found: dict[int, Payload]
) -> None:
    missing = set(manifest.parts.seq)
    if not follower.backlog:
        raise _gone(manifest, missing)
    while missing:
        try:
            async with asyncio.timeout(_PROGRESS_S):
                messages = await follower.next_batch()
        except TimeoutError:
            await _look_up(bus, manifest, min(missing))
            continue
        for message in messages:
            if message.seq in missing:
                missing.discard(message.seq)
                found[message.seq] = await _payload(bus, manifest, message)
            if missing and not message.pending:
                raise _gone(manifest, missing)
        if missing and min(missing) <= messages[-1].seq:
            raise _gone(manifest, missing)


async def _payload(bus: Bus, manifest: TrainBatchManifest, message: Received) -> Payload:
    names = bus.names
    if not message.subject.startswith(f"{names.root}.result."):
        return Payload(message.data)
    header = (message.headers or {}).get(RESULT_HEADER)
    if header is None:
        raise ContractError(f"{_part(manifest, message.seq)} has no {RESULT_HEADER} header")
    task = names.parse_slice(message.subject).task
    ref = Result.decode(header).object
    if ref is None:
        return Payload(message.data, task)
    return Payload(await get_object(bus, manifest.parts.stream, ref), task)


async def _look_up(bus: Bus, manifest: TrainBatchManifest, seq: int) -> None:
    try:
        await bus.api(f"STREAM.MSG.GET.{manifest.parts.stream}", {"seq": seq})
    except NotFound as error:
        raise _gone(manifest, {seq}) from error


def _filter(bus: Bus, manifest: TrainBatchManifest) -> str:
    """Subjects of the parts: results of the batch, or parts of their own beside the manifest."""
    names = bus.names
    batch = str(manifest.batch)
    if manifest.parts.stream == names.results_stream:
        return names.batch_results(batch)
    if manifest.parts.stream == names.train_stream:
        return names.batch_training(batch)
    raise ContractError(
        f"batch {batch} of run {manifest.run}: its parts are in stream "
        f"{manifest.parts.stream}, which is not one of this run"
    )


def _gone(manifest: TrainBatchManifest, missing: set[int]) -> NotFound:
    return NotFound(
        f"{_part(manifest, min(missing))} is gone, {len(missing)} of {len(manifest.parts.seq)} "
        "parts are missing; they were deleted or are past streams.results_max_age_s or "
        "results_max_bytes"
    )


def _part(manifest: TrainBatchManifest, seq: int) -> str:
    return (
        f"batch {manifest.batch} of run {manifest.run}: part {seq} of stream "
        f"{manifest.parts.stream}"
    )
