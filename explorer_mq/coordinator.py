"""The rollout coordinator: takes batches, sees them through, hands them to trainers.

It is the lifecycle of batches over the :class:`Scheduler`, which runs them: pending -> running ->
finalizing -> finalized, or aborted. Results stay in their stream until a batch is over, so that
every call may be repeated after any failure.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from explorer_mq.bus.connection import Bus
from explorer_mq.core.batch import expired
from explorer_mq.core.outcome import view
from explorer_mq.core.state import BatchState, FinalizeRequested, FinalizeWithdrawn
from explorer_mq.delivery import publish_experiences
from explorer_mq.live import LiveBatch
from explorer_mq.roster import Roster
from explorer_mq.scheduler import Scheduler
from explorer_mq.settings import Settings
from explorer_mq.streams import RunStreams
from explorer_mq.submission import BatchOptions
from explorer_mq_schemas.batches import BatchResult, BatchView
from explorer_mq_schemas.errors import BatchTimeout, InvalidRequest
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.tasks import BatchType, Task

if TYPE_CHECKING:
    from explorer_mq.coordinator_actor import CoordinatorHandle


class RolloutCoordinator:
    """Batch lifecycle over a durable journal; a library in a process, or an actor over NATS.

    Args:
        bus: a connection to the run.
        settings: ``scheduler`` rules it.
        name: of the connection, told to whoever is refused because this one leads.
    """

    def __init__(self, bus: Bus, settings: Settings, *, name: str = "") -> None:
        self._bus = bus
        self._streams = RunStreams.over(bus)
        self._prepared = False
        self.scheduler = Scheduler(bus, settings, name=name or new_id("coordinator"))

    @staticmethod
    def get_actor(bus: Bus) -> CoordinatorHandle:
        """A handle that calls the running coordinator of the bus's run over NATS."""
        from explorer_mq.coordinator_actor import CoordinatorHandle

        return CoordinatorHandle(bus)

    @property
    def roster(self) -> Roster:
        """The workers of the run."""
        return self.scheduler.roster

    @property
    def is_leading(self) -> bool:
        """Prepared, and nothing has ended it."""
        return self._prepared and self.scheduler.is_running

    async def prepare(self, *, standby: bool = False) -> None:
        """Replay the journal and take up every open batch where it stopped; safe to call twice.

        Args:
            standby: wait for another coordinator to end in place of being refused.

        Raises:
            FencedError: another coordinator leads this run.
        """
        if self._prepared:
            return
        await self.scheduler.start(standby=standby)
        await self._streams.publisher.start()
        self._prepared = True

    async def shutdown(self) -> None:
        """Stop deciding; open batches stay as they are for the next coordinator. Idempotent."""
        await self.scheduler.stop()
        if self._prepared:
            await self._streams.publisher.close()
            self._prepared = False

    async def failed(self) -> BaseException:
        """Wait until the coordinator cannot go on, and return why (fenced, or a defect)."""
        return await self.scheduler.failed()

    async def submit_batch(
        self,
        *,
        batch_id: int | str,
        tasks: Sequence[Task],
        batch_type: BatchType = "train",
        min_wait_num: int | None = None,
        return_partial_tasks: bool = False,
        auto_finalize: bool = False,
        deadline_s: float | None = None,
        note: dict[str, Any] | None = None,
    ) -> None:
        """Journal the batch and queue all its slices; returns when they are queued.

        The batch exists, whole, from the moment it is journalled: a coordinator that dies earlier
        leaves nothing, one that dies later leaves a batch its successor completes.

        Args:
            batch_id: unique within the run, for ever.
            tasks: each with ``repeat_times`` of at least 1; may be empty.
            batch_type: ``train`` batches reach trainers, ``eval`` batches only yield metrics.
            min_wait_num: settled tasks that suffice once the grace time is over.
            return_partial_tasks: deliver tasks with some completed runs when the batch closes early.
            auto_finalize: close the batch without a call of finalize.
            deadline_s: how long the batch may take from now on.
            note: JSON of the caller's own, stored with the batch and given back with its result.

        Raises:
            InvalidRequest: (a ``ValueError``) the id is active or used up, or a task is not valid;
                nothing changed.
        """
        options = BatchOptions(
            batch_type=batch_type,
            min_wait_num=min_wait_num,
            return_partial=return_partial_tasks,
            auto_finalize=auto_finalize,
            deadline_s=deadline_s,
            note=note or {},
        )
        await self.scheduler.open_batch(batch_id, tasks, options)

    async def finalize_train_batch(
        self,
        batch_id: int | str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> BatchResult:
        """Wait until the batch may close, publish it to the trainers, return its metrics.

        Raises:
            NotFound: (a ``KeyError``) the id is not active.
            InvalidRequest: (a ``ValueError``) it is an eval batch.
            BatchTimeout: (a ``TimeoutError``) too little was settled in time; every result is kept,
                the call may be repeated.
        """
        result = await self.finalize_for(batch_id, "train", timeout)
        assert result is not None
        return result

    async def finalize_eval_batch(
        self,
        batch_id: int | str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> BatchResult:
        """Wait for the eval batch, at most until its deadline, and return its metrics.

        Raises:
            NotFound: (a ``KeyError``) the id is not active.
            InvalidRequest: (a ``ValueError``) it is a train batch.
        """
        result = await self.finalize_for(batch_id, "eval", timeout)
        assert result is not None
        return result

    async def abort_batch(
        self, batch_id: int | str, *, reason: str, keep_partial_results: bool = False
    ) -> BatchResult | None:
        """Give the batch up and cancel its work. None if it is not active.

        A batch that is being finalized already is finalized.

        Args:
            batch_id: which.
            reason: why; kept in the journal.
            keep_partial_results: hand the completed runs to the trainers first, and count their
                tasks in the result; otherwise all results are dropped.
        """
        live = self.scheduler.batches.find(batch_id)
        if live is None:
            return None
        self.scheduler.running()
        async with live.lock:
            if not live.state.is_closed:
                await self.scheduler.driver.abort(live, reason, keep_partial=keep_partial_results)
        return await self._wait_closed(live)

    async def process_experiences(self, payloads: Sequence[bytes]) -> dict[str, float]:
        """Hand packed experiences that belong to no batch to the trainers, as a batch of their own.

        Returns the pipeline's metrics, ``experience_pipeline/experience_count`` among them; ``{}``
        for no payload.

        Raises:
            RuntimeError: not prepared.
            ContractError: a payload is not packed experiences; nothing was published.
        """
        if not self._prepared:
            raise RuntimeError("the coordinator is not prepared: call prepare() first")
        if not payloads:
            return {}
        return await publish_experiences(self._bus, self._streams.publisher, payloads)

    async def get_batch_result(self, batch_id: int | str) -> BatchResult:
        """The stored result of a finalized or aborted batch.

        Raises:
            NotFound: (a ``KeyError``) it is still open, was never seen, or was retired long ago.
        """
        result = self.scheduler.batches.result(batch_id)
        if result is None:
            raise self.scheduler.batches.unknown(batch_id)
        return result

    async def wait_batch(self, batch_id: int | str, *, seconds: float) -> BatchView | BatchResult:
        """The result once the batch is closed, else its progress after ``seconds``.

        Raises:
            NotFound: the id was never seen.
        """
        end = self._bus.now() + seconds
        while (live := self.scheduler.batches.find(batch_id)) is not None:
            self.scheduler.raise_failure()
            if not await live.changed.wait(end - self._bus.now()):
                return view(live.state, with_statuses=False)
        return await self.get_batch_result(batch_id)

    async def status(self) -> dict[str, Any]:
        """One screen: batches by state, queue, workers, the newest policy version."""
        scheduler = self.scheduler
        phases = Counter(str(live.state.phase) for live in scheduler.batches.open())
        phases.update(str(live.state.phase) for live in scheduler.batches.closed())
        workers = self.roster.workers()
        queue = await self._streams.queue.depth()
        return {
            "run": self._bus.names.run,
            "batches": dict(phases),
            "queued_slices": queue.pending,
            "leased_slices": queue.leased,
            "workers": len(workers),
            "slots": sum(beat.slots for beat in workers),
            "busy_slots": sum(len(beat.running) for beat in workers),
            "policy_versions": sorted({beat.policy_version for beat in workers}),
            "retries": sum(scheduler.results.attempts.values()),
            "late_results": sum(
                live.state.late_total
                for live in (*scheduler.batches.open(), *scheduler.batches.closed())
            ),
            "malformed_results": scheduler.results.malformed,
            "stalls": scheduler.watchdog.stalls,
            "digest": scheduler.digest(),
        }

    def batches(self) -> list[BatchView | BatchResult]:
        """Closed batches, then open ones, each in order."""
        known = self.scheduler.batches
        return [
            *(result for live in known.closed() if (result := known.result(live.name))),
            *(view(live.state) for live in known.open()),
        ]

    def batch(self, batch_id: int | str) -> BatchView | BatchResult:
        """One batch with the statuses of its settled tasks, or its stored result.

        Raises:
            NotFound: the id was never seen.
        """
        live = self.scheduler.batches.find(batch_id)
        if live is not None:
            return view(live.state, with_statuses=True)
        closed = self.scheduler.batches.result(batch_id)
        if closed is None:
            raise self.scheduler.batches.unknown(batch_id)
        return closed

    async def finalize_for(
        self,
        batch_id: int | str,
        batch_type: BatchType,
        seconds: float | None,
        *,
        wait_s: float | None = None,
    ) -> BatchResult | None:
        """Finalize with a deadline ``seconds`` from now; None when ``wait_s`` passed before that.

        Raises:
            NotFound, InvalidRequest, BatchTimeout: as :meth:`finalize_train_batch`.
        """
        live = self.scheduler.batches.find(batch_id)
        if live is None:
            raise self.scheduler.batches.unknown(batch_id)
        opening = live.state.opening
        if opening.batch_type != batch_type:
            raise InvalidRequest(
                f"batch {live.name!r} is {opening.batch_type}, expected {batch_type}"
            )
        if opening.collected:
            raise InvalidRequest(
                f"batch {live.name!r} was scheduled to be collected: use get_payload_results"
            )
        live.waiters += 1
        live.apply(FinalizeRequested(None if seconds is None else self._bus.now() + seconds))
        try:
            async with asyncio.timeout(wait_s):
                return await self._wait_closed(live)
        except BatchTimeout:
            raise
        except TimeoutError:
            return None
        finally:
            live.waiters -= 1
            if not live.waiters:
                live.apply(FinalizeWithdrawn())

    async def _wait_closed(self, live: LiveBatch) -> BatchResult:
        while (result := self.scheduler.batches.result(live.name)) is None:
            self.scheduler.raise_failure()
            now = self._bus.now()
            if expired(live.state, now):
                raise _timed_out(live.state)
            # Past the deadline it is being closed, which is a change too.
            left_s = live.state.deadline_at - now
            await live.changed.wait(left_s if left_s > 0 and not live.state.is_closed else None)
        return result


def _timed_out(state: BatchState) -> BatchTimeout:
    return BatchTimeout(
        f"batch {state.batch!r}: {state.settled} of {state.task_count} tasks settled in time; all "
        "results are kept: finalize again, or abort the batch"
    )
