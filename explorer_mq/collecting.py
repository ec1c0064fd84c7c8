"""Taking the results of a scheduled batch out of the streams, task by task.

Wait, look, read the payloads, and only then settle: a caller that dies before has lost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from explorer_mq.batches import Batches
from explorer_mq.bus.connection import Bus
from explorer_mq.core.batch import collect_entry
from explorer_mq.core.outcome import CompletedTaskResult, completed_tasks
from explorer_mq.driver import Driver
from explorer_mq.live import LiveBatch
from explorer_mq_schemas.batches import Parts, TrainBatchManifest
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.tasks import Status

logger = logging.getLogger(__name__)


class Collector:
    """Hands results to the scheduler's caller and ends the batch when all are taken."""

    def __init__(self, bus: Bus, batches: Batches, driver: Driver) -> None:
        self._bus = bus
        self._batches = batches
        self._driver = driver

    async def collect(
        self,
        batch_id: int | str,
        *,
        min_num: int | None = None,
        seconds: float | None = None,
        clear: bool = True,
        partial: bool = False,
        payloads: bool = True,
    ) -> tuple[list[Status], list[bytes]]:
        """Wait, then take what is done; see :meth:`Scheduler.get_payload_results`.

        Raises:
            InvalidRequest: the batch is a coordinator's.
            TransientError: the streams cannot be read now; the call may be repeated.
        """
        await self.wait(batch_id, min_num=min_num, seconds=seconds)
        found = self.look(batch_id, partial=partial and clear)
        seqs = [seq for task in found for seq in task.payload_seqs]
        buffers = await read_results(self._bus, batch_id, seqs) if payloads else []
        await self.settle(batch_id, [task.task_id for task in found], clear=clear)
        return [task.status for task in found], buffers

    async def wait(
        self,
        batch_id: int | str,
        *,
        min_num: int | None = None,
        seconds: float | None = None,
        longest_s: float | None = None,
    ) -> bool:
        """Wait until all tasks are over, or enough are and the time of grace has passed, or time is up.

        False: none of these within ``longest_s``.
        """
        live = self._find(batch_id)
        if live is None:
            return True
        now = self._bus.now()
        end = live.state.deadline_at if seconds is None else now + seconds
        patience_ends = float("inf") if longest_s is None else now + longest_s
        total = live.state.task_count
        if min_num is not None and min_num > total:
            logger.warning("batch=%s min_num %d exceeds its %d tasks", live.name, min_num, total)
        target = total if min_num is None else min(min_num, total)
        while live.state.settled < total and not live.state.is_closed and now < end:
            wake = end
            if live.state.settled >= target:
                wake = min(end, live.enough_since(target, now) + live.state.opening.grace_s)
            if now >= wake:
                return True
            if now >= patience_ends:
                return False
            await live.changed.wait(min(wake, patience_ends) - now)
            now = self._bus.now()
        return True

    def look(self, batch_id: int | str, *, partial: bool = False) -> list[CompletedTaskResult]:
        """Tasks that are done and not taken yet, with ``partial`` those with a completed run too."""
        live = self._find(batch_id)
        if live is None or live.state.is_closed:
            return []
        done = completed_tasks(live.state, partial=partial)
        return [task for task in done if task.task_id not in live.collected]

    async def settle(
        self, batch_id: int | str, task_ids: Collection[int], *, clear: bool = True
    ) -> None:
        """These tasks are taken, and with ``clear`` the rest is given up; the batch may end then."""
        live = self._find(batch_id)
        if live is None:
            return
        async with live.lock:
            live.collected.update(task_ids)
            over = clear or len(live.collected) == live.state.task_count
            if over and not live.state.is_closed:
                await self._driver.close(live, collect_entry(live.state, live.collected))

    def _find(self, batch_id: int | str) -> LiveBatch | None:
        live = self._batches.find(batch_id)
        if live is not None and not live.state.opening.collected:
            raise InvalidRequest(f"batch {live.name!r} was submitted to the coordinator, not here")
        return live


async def read_results(bus: Bus, batch_id: int | str, seqs: Sequence[int]) -> list[bytes]:
    """The packed experiences of the results with these sequences, in their order.

    Raises:
        NotFound: a result is gone from the stream.
        TransientError: the server cannot be reached; trying again is safe.
    """
    if not seqs:
        return []
    from explorer_mq.trainer.payloads import read_payloads

    names = bus.names
    wanted = TrainBatchManifest(
        run=names.run,
        batch=batch_id,
        tasks=0,
        finished_task_count=0,
        runs=0,
        completed_runs=0,
        experiences=0,
        parts=Parts(stream=names.results_stream, seq=tuple(seqs)),
    )
    return [bytes(payload.data) for payload in await read_payloads(bus, wanted)]
