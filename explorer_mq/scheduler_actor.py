"""The scheduler's mailbox: its methods over NATS, and the handle that calls them.

Packed experiences do not travel through the mailbox: a reply names their result sequences, and the
handle reads them from the stream, so the scheduler never touches a payload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from explorer_mq.bus.actors import ActorHandle, ActorService, Method, serve_actor
from explorer_mq.bus.connection import Bus
from explorer_mq.collecting import read_results
from explorer_mq_schemas.tasks import Status, Task

if TYPE_CHECKING:
    from explorer_mq.scheduler import Scheduler

ACTOR = "scheduler"

_WAIT_S = 20.0
"""Longest time one call waits; the handle repeats it, so that a dead scheduler is noticed."""


async def serve_scheduler(bus: Bus, scheduler: Scheduler, *, version: str) -> ActorService:
    """Answer calls for ``scheduler`` until the service is closed."""
    return await serve_actor(bus, ACTOR, _methods(scheduler), version=version)


def _methods(  # noqa: C901 - a table of short methods
    scheduler: Scheduler,
) -> Mapping[str, Method]:
    async def schedule(tasks: list[dict[str, Any]], batch_id: int | str) -> None:
        await scheduler.schedule([Task.validate_fields(row) for row in tasks], batch_id)

    async def wait_collectable(batch_id: int | str, **options: Any) -> bool:
        return await scheduler.collector.wait(batch_id, longest_s=_WAIT_S, **options)

    async def look(batch_id: int | str, *, partial: bool) -> Any:
        found = scheduler.collector.look(batch_id, partial=partial)
        return {
            "statuses": [task.status.model_dump(mode="json") for task in found],
            "tasks": [task.task_id for task in found],
            "seqs": [seq for task in found for seq in task.payload_seqs],
        }

    async def settle(batch_id: int | str, tasks: list[int], *, clear: bool) -> None:
        await scheduler.collector.settle(batch_id, tasks, clear=clear)

    async def abort_batch(batch_id: int | str) -> None:
        await scheduler.abort_batch(batch_id)

    async def has_step(batch_id: int | str) -> bool:
        return scheduler.has_step(batch_id)

    async def wait_all(longest_s: float) -> bool:
        try:
            await scheduler.wait_all(min(longest_s, _WAIT_S))
        except TimeoutError:
            return False
        return True

    async def dynamic_timeout(timeout: float | None = None) -> float:  # noqa: ASYNC109
        return scheduler.dynamic_timeout(timeout)

    async def get_all_state() -> Any:
        return scheduler.get_all_state()

    async def print_all_state() -> str:
        return scheduler.print_all_state()

    async def digest() -> str:
        return scheduler.digest()

    return {
        "schedule": schedule,
        "wait_collectable": wait_collectable,
        "look": look,
        "settle": settle,
        "abort_batch": abort_batch,
        "has_step": has_step,
        "wait_all": wait_all,
        "dynamic_timeout": dynamic_timeout,
        "get_all_state": get_all_state,
        "print_all_state": print_all_state,
        "digest": digest,
    }


class SchedulerHandle:
    """A running scheduler, called over NATS; same names and meaning as its own methods."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._actor = ActorHandle(bus, ACTOR, command="coordinator")

    async def schedule(self, tasks: Sequence[Task], batch_id: int | str) -> None:
        """As :meth:`Scheduler.schedule`."""
        rows = [task.model_dump(mode="json") for task in tasks]
        await self._actor.call("schedule", timeout_s=120.0, tasks=rows, batch_id=batch_id)

    async def get_payload_results(
        self,
        batch_id: int | str,
        min_num: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
        clear_timeout_tasks: bool = True,
        return_partial_tasks: bool = False,
    ) -> tuple[list[Status], list[bytes]]:
        """As :meth:`Scheduler.get_payload_results`."""
        await self._wait(batch_id, min_num, timeout)
        return await self._take(batch_id, clear=clear_timeout_tasks, partial=return_partial_tasks)

    async def get_statuses(
        self,
        batch_id: int | str,
        min_num: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
        clear_timeout_tasks: bool = True,
        return_partial_tasks: bool = False,
    ) -> list[Status]:
        """As :meth:`Scheduler.get_statuses`."""
        await self._wait(batch_id, min_num, timeout)
        statuses, _ = await self._take(
            batch_id, clear=clear_timeout_tasks, partial=return_partial_tasks, payloads=False
        )
        return statuses

    async def drain_batch_payload_results(
        self, batch_id: int | str
    ) -> tuple[list[Status], list[bytes]]:
        """As :meth:`Scheduler.drain_batch_payload_results`."""
        return await self._take(batch_id, clear=False, partial=False)

    async def abort_batch(
        self, batch_id: int | str, return_partial_tasks: bool = False
    ) -> tuple[list[Status], list[bytes]]:
        """As :meth:`Scheduler.abort_batch`."""
        if return_partial_tasks:
            return await self._take(batch_id, clear=True, partial=True)
        await self._actor.call("abort_batch", batch_id=batch_id)
        return [], []

    async def has_step(self, batch_id: int | str) -> bool:
        """As :meth:`Scheduler.has_step`."""
        return bool(await self._actor.call("has_step", batch_id=batch_id))

    async def wait_all(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> None:
        """As :meth:`Scheduler.wait_all`."""
        end = self._bus.now() + (float("inf") if timeout is None else timeout)
        while not await self._actor.call(
            "wait_all", timeout_s=_WAIT_S + 10.0, longest_s=min(_WAIT_S, end - self._bus.now())
        ):
            if self._bus.now() >= end:
                raise TimeoutError(f"batches are still open after {timeout} s")

    async def dynamic_timeout(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> float:
        """As :meth:`Scheduler.dynamic_timeout`."""
        return float(await self._actor.call("dynamic_timeout", timeout=timeout))

    async def get_all_state(self) -> dict[str, dict[str, Any]]:
        """As :meth:`Scheduler.get_all_state`."""
        found: dict[str, dict[str, Any]] = await self._actor.call("get_all_state")
        return found

    async def get_runner_state(self, runner_id: str) -> dict[str, Any]:
        """As :meth:`Scheduler.get_runner_state`."""
        return (await self.get_all_state()).get(runner_id, {})

    async def get_key_state(self, key: str) -> dict[str, Any]:
        """As :meth:`Scheduler.get_key_state`."""
        states = await self.get_all_state()
        return {runner: fields[key] for runner, fields in states.items() if key in fields}

    async def print_all_state(self) -> str:
        """As :meth:`Scheduler.print_all_state`."""
        return str(await self._actor.call("print_all_state"))

    async def digest(self) -> str:
        """As :meth:`Scheduler.digest`."""
        return str(await self._actor.call("digest"))

    async def _wait(self, batch_id: int | str, min_num: int | None, seconds: float | None) -> None:
        end = None if seconds is None else self._bus.now() + seconds
        while not await self._actor.call(
            "wait_collectable",
            timeout_s=_WAIT_S + 10.0,
            batch_id=batch_id,
            min_num=min_num,
            seconds=None if end is None else max(0.0, end - self._bus.now()),
        ):
            continue

    async def _take(
        self, batch_id: int | str, *, clear: bool, partial: bool, payloads: bool = True
    ) -> tuple[list[Status], list[bytes]]:
        found = await self._actor.call("look", batch_id=batch_id, partial=partial and clear)
        statuses = [Status.validate_fields(status) for status in found["statuses"]]
        seqs = found["seqs"] if payloads else []
        buffers = await read_results(self._bus, batch_id, seqs)
        await self._actor.call("settle", batch_id=batch_id, tasks=found["tasks"], clear=clear)
        return statuses, buffers
