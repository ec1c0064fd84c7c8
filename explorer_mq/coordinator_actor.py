"""The coordinator's mailbox: its methods over NATS, and the handle that calls them.

Arguments and replies are JSON. A batch too large for one message travels as an object: the handle
stores the tasks next to the results first and sends the reference.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from explorer_mq.bus.actors import ActorHandle, ActorService, Method, serve_actor
from explorer_mq.bus.connection import Bus, Msg
from explorer_mq.bus.objects import get_object, put_object
from explorer_mq.bus.publisher import Publisher
from explorer_mq.coordinator import RolloutCoordinator
from explorer_mq.submission import INLINE_TASKS_BYTES
from explorer_mq_schemas.batches import BatchResult, BatchView
from explorer_mq_schemas.errors import NotFound, TransientError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.messages import ObjectRef
from explorer_mq_schemas.tasks import BatchType, Task

logger = logging.getLogger(__name__)

ACTOR = "coordinator"

WAIT_S = 20.0
"""Longest time one call waits; handles repeat it, so that a dead coordinator is noticed."""


async def serve_coordinator(
    bus: Bus, coordinator: RolloutCoordinator, *, version: str
) -> ActorService:
    """Answer calls for ``coordinator`` until the service is closed."""
    return await serve_actor(bus, ACTOR, _methods(bus, coordinator), version=version)


def _methods(  # noqa: C901 - a table of short methods
    bus: Bus, coordinator: RolloutCoordinator
) -> Mapping[str, Method]:
    async def submit_batch(
        *,
        tasks: list[dict[str, Any]] | None = None,
        object: dict[str, Any] | None = None,  # noqa: A002 - the wire's name
        **options: Any,
    ) -> None:
        rows = tasks or []
        parsed = [Task.validate_fields(row) for row in rows]
        if object is not None:
            ref = ObjectRef.validate_fields(object)
            text = bytes(await get_object(bus, bus.names.results_stream, ref))
            parsed = [Task.decode(line) for line in text.split(b"\n") if line]
        await coordinator.submit_batch(tasks=parsed, **options)

    async def finalize(
        batch_id: int | str, batch_type: BatchType, left_s: float | None, *, again: bool
    ) -> Any:
        if again and coordinator.scheduler.batches.result(batch_id) is not None:
            return _fields(await coordinator.get_batch_result(batch_id))
        result = await coordinator.finalize_for(batch_id, batch_type, left_s, wait_s=WAIT_S)
        return None if result is None else _fields(result)

    async def wait_batch(batch_id: int | str, wait_s: float = WAIT_S) -> Any:
        found = await coordinator.wait_batch(batch_id, seconds=min(wait_s, WAIT_S))
        return _fields(found)

    async def abort_batch(
        batch_id: int | str, reason: str, *, keep_partial_results: bool = False
    ) -> Any:
        result = await coordinator.abort_batch(
            batch_id, reason=reason, keep_partial_results=keep_partial_results
        )
        return None if result is None else _fields(result)

    async def get_batch_result(batch_id: int | str) -> Any:
        return _fields(await coordinator.get_batch_result(batch_id))

    async def batch(batch_id: int | str) -> Any:
        return _fields(coordinator.batch(batch_id))

    async def batches() -> Any:
        return [_fields(found) for found in coordinator.batches()]

    async def workers() -> Any:
        return [beat.model_dump(mode="json") for beat in coordinator.roster.workers()]

    async def status() -> Any:
        return await coordinator.status()

    async def why() -> Any:
        findings = await coordinator.scheduler.watchdog.why()
        return [finding._asdict() for finding in findings]

    return {
        "submit_batch": submit_batch,
        "finalize": finalize,
        "wait_batch": wait_batch,
        "abort_batch": abort_batch,
        "get_batch_result": get_batch_result,
        "batch": batch,
        "batches": batches,
        "workers": workers,
        "status": status,
        "why": why,
    }


class CoordinatorHandle:
    """A running coordinator, called over NATS; same names and meaning as its own methods."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._actor = ActorHandle(bus, ACTOR)

    async def wait_ready(self, seconds: float = 30.0) -> None:
        """Return as soon as a coordinator answers.

        Raises:
            TimeoutError: none does within ``seconds``.
        """
        leads = asyncio.Event()

        async def hear(_: Msg) -> None:
            leads.set()

        heard = await self._bus.subscribe(self._bus.names.event("leader"), hear)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    leads.clear()
                    try:
                        await self._actor.call("ping")
                    except NotFound:
                        await leads.wait()
                    except TransientError as error:
                        logger.debug("no answer yet: %s", error)
                    else:
                        return
        finally:
            await heard.unsubscribe()

    async def submit_batch(
        self, *, batch_id: int | str, tasks: Sequence[Task], **options: Any
    ) -> None:
        """As :meth:`RolloutCoordinator.submit_batch`; large batches are stored first."""
        lines = [task.encode() for task in tasks]
        arguments: dict[str, Any] = {"batch_id": batch_id, **options}
        if sum(map(len, lines)) <= INLINE_TASKS_BYTES:
            arguments["tasks"] = [task.model_dump(mode="json") for task in tasks]
        else:
            prefix = self._bus.names.object(str(batch_id), "submit", new_id("from"))
            async with Publisher(self._bus) as publisher:
                ref = await put_object(publisher, prefix, b"\n".join(lines))
            arguments["object"] = ref.model_dump(mode="json")
        await self._actor.call("submit_batch", timeout_s=120.0, **arguments)

    async def finalize_train_batch(
        self,
        batch_id: int | str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> BatchResult:
        """As :meth:`RolloutCoordinator.finalize_train_batch`."""
        return await self._finalize(batch_id, "train", timeout)

    async def finalize_eval_batch(
        self,
        batch_id: int | str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> BatchResult:
        """As :meth:`RolloutCoordinator.finalize_eval_batch`."""
        return await self._finalize(batch_id, "eval", timeout)

    async def finalize(
        self,
        batch_id: int | str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> BatchResult:
        """Finalize a batch of either type."""
        found = await self._actor.call("batch", batch_id=batch_id)
        return await self._finalize(batch_id, found["batch_type"], timeout)

    async def abort_batch(
        self, batch_id: int | str, *, reason: str, keep_partial_results: bool = False
    ) -> BatchResult | None:
        """As :meth:`RolloutCoordinator.abort_batch`."""
        found = await self._actor.call(
            "abort_batch",
            batch_id=batch_id,
            reason=reason,
            keep_partial_results=keep_partial_results,
        )
        return None if found is None else BatchResult.validate_fields(found)

    async def get_batch_result(self, batch_id: int | str) -> BatchResult:
        """As :meth:`RolloutCoordinator.get_batch_result`."""
        found = await self._actor.call("get_batch_result", batch_id=batch_id)
        return BatchResult.validate_fields(found)

    async def wait_batch(self, batch_id: int | str, *, seconds: float) -> BatchView | BatchResult:
        """As :meth:`RolloutCoordinator.wait_batch`, with ``seconds`` of at most 20."""
        found = await self._actor.call(
            "wait_batch", timeout_s=seconds + 10.0, batch_id=batch_id, wait_s=seconds
        )
        return _parse(found)

    async def status(self) -> dict[str, Any]:
        """As :meth:`RolloutCoordinator.status`."""
        found: dict[str, Any] = await self._actor.call("status")
        return found

    async def why(self) -> list[dict[str, Any]]:
        """What everything is waiting for: ``cause``, ``text`` and ``remedy`` of each reason."""
        found: list[dict[str, Any]] = await self._actor.call("why")
        return found

    async def _finalize(
        self, batch_id: int | str, batch_type: BatchType, seconds: float | None
    ) -> BatchResult:
        """Repeat bounded calls: each finds the batch as the last one left it."""
        end = None if seconds is None else self._bus.now() + seconds
        again = False
        while True:
            found = await self._actor.call(
                "finalize",
                timeout_s=WAIT_S + 10.0,
                batch_id=batch_id,
                batch_type=batch_type,
                left_s=None if end is None else max(0.0, end - self._bus.now()),
                again=again,
            )
            if found is not None:
                return BatchResult.validate_fields(found)
            again = True


def _fields(found: BatchView | BatchResult) -> dict[str, Any]:
    return found.model_dump(mode="json")


def _parse(found: dict[str, Any]) -> BatchView | BatchResult:
    if "submitted_at" in found:
        return BatchView.validate_fields(found)
    return BatchResult.validate_fields(found)
