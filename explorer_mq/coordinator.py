"""The rollout coordinator: takes batches, sees them through, hands them to trainers.

Flow of a batch: :meth:`submit_batch` -> journal ``submitting`` -> :meth:`_drive` asks ``decide`` ->
effects (publish tasks, close, deliver, abort) -> each ends in a journal entry -> ``evolve``.

One ``_drive`` per open batch repeats decide, perform, wait for a change. Every effect may be cut off
by a crash at any point: after replay ``decide`` asks for it again, and each is idempotent.
The journal's fence is the guarantee that only one coordinator decides; everything else saves work.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.journal import Journal
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.results import ResultLog
from explorer_mq.bus.tasks import TaskQueue
from explorer_mq.core.batch import (
    Abort,
    BatchState,
    Close,
    Deliver,
    Effect,
    FinalizeRequested,
    FinalizeWithdrawn,
    PublishRetry,
    PublishTasks,
    RemoveLate,
    decide,
    expired,
    next_wake,
    open_batch,
    replay,
)
from explorer_mq.core.outcome import batch_metrics, manifest, statuses, view
from explorer_mq.crew import Crew
from explorer_mq.delivery import publish_manifest
from explorer_mq.roster import Roster
from explorer_mq.scheduler import LiveBatch, Scheduler
from explorer_mq.settings import Settings
from explorer_mq.submission import BatchOptions, opening_entry
from explorer_mq_schemas.batches import BatchLifecycleState, BatchResult, BatchView
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.errors import (
    BatchTimeout,
    ExplorerError,
    FencedError,
    InvalidRequest,
    NotFound,
)
from explorer_mq_schemas.ids import encode_token
from explorer_mq_schemas.journal import Aborted, Finalized, Running
from explorer_mq_schemas.tasks import BatchType, Task

logger = logging.getLogger(__name__)

_BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class RolloutCoordinator:
    """Batch lifecycle over a durable journal; a library in a process or an actor over NATS."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self._bus = bus
        self._settings = settings
        self._publisher = Publisher(bus)
        self._journal = Journal(bus)
        self._queue = TaskQueue(bus, self._publisher)
        self._results = ResultLog(bus, self._publisher)
        self.scheduler = Scheduler(bus, self._queue, self._results)
        self.roster = Roster(bus, beat_interval_s=settings.worker.beat_interval_s)
        self.closed: dict[str, BatchResult] = {}
        self._crew: Crew | None = None

    async def prepare(self) -> None:
        """Replay the journal and take up every open batch where it stopped; safe to call twice.

        Raises:
            FencedError: another coordinator writes this run's journal.
        """
        if self._crew is not None:
            return
        self._crew = Crew()
        self._crew.start(self._alarm(self._crew), name="alarm")
        await self._publisher.start()
        await self.roster.start()
        states = replay(await self._journal.replay(), [])
        for state in states.values():
            if state.outcome is not None:
                self.closed[str(state.batch)] = _result_of(state)
        await self.scheduler.start(states.values(), self._crew)
        for live in self.scheduler.batches():
            logger.info("batch=%s taken up in state %s", live.name, live.state.phase)
            await self.scheduler.publish_open(live)
            self._crew.start(self._drive(live), name=f"batch {live.name}")

    async def shutdown(self) -> None:
        """Stop deciding; open batches stay as they are for the next coordinator. Idempotent."""
        if self._crew is not None:
            await self._crew.close()
            await self.scheduler.close()
            await self.roster.close()
            await self._publisher.close()
            self._crew = None

    async def failed(self) -> BaseException:
        """Wait until the coordinator cannot go on, and return why (fenced, or a defect)."""
        return await self._running().failed()

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
    ) -> None:
        """Journal the batch and queue all its slices; returns when they are queued.

        The batch exists, whole, from the moment it is journalled: a coordinator that dies earlier
        leaves nothing, one that dies later leaves a batch its successor completes.

        Args:
            batch_id: unique within the run, for ever.
            tasks: each with ``repeat_times`` of at least 1; may be empty.
            batch_type: ``train`` batches reach trainers, ``eval`` batches only yield metrics.
            min_wait_num: settled tasks that suffice once the grace time is over.
            return_partial_tasks: deliver tasks with some completed runs at the deadline.
            auto_finalize: close the batch without a call of finalize.
            deadline_s: how long the batch may take from now on.

        Raises:
            InvalidRequest: the id is active or used up, or a task is not valid; nothing changed.
        """
        crew = self._running()
        name = str(batch_id)
        encode_token(name)
        if self.scheduler.find(name) is not None:
            raise InvalidRequest(f"batch {name!r} is already active")
        if name in self.closed:
            raise InvalidRequest(
                f"batch {name!r} is {self.closed[name].state} already; a batch id is used once, "
                "choose another"
            )
        options = BatchOptions(
            batch_type=batch_type,
            min_wait_num=min_wait_num,
            return_partial=return_partial_tasks,
            auto_finalize=auto_finalize,
            deadline_s=deadline_s,
        )
        live = await self._open(batch_id, tasks, options)
        crew.start(self._drive(live), name=f"batch {name}")
        while live.state.phase is BatchLifecycleState.PENDING:
            await live.changed.wait()
            self._raise_failure()

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

    async def abort_batch(self, batch_id: int | str, *, reason: str) -> BatchResult | None:
        """Give the batch up: cancel its work, drop its results. None if it is not active."""
        live = self.scheduler.find(batch_id)
        if live is None:
            return None
        async with live.lock:
            if live.state.outcome is None:
                await self._abort(live, reason)
        return self.closed[live.name]

    async def get_batch_result(self, batch_id: int | str) -> BatchResult:
        """The stored result of a finalized or aborted batch.

        Raises:
            NotFound: (a ``KeyError``) it is still open, or was never seen.
        """
        result = self.closed.get(str(batch_id))
        if result is None:
            raise _not_registered(batch_id)
        return result

    async def wait_batch(self, batch_id: int | str, *, seconds: float) -> BatchView | BatchResult:
        """The result once the batch is closed, else its progress after ``seconds``.

        Raises:
            NotFound: the id was never seen.
        """
        end = self._bus.now() + seconds
        while (live := self.scheduler.find(batch_id)) is not None:
            if not await live.changed.wait(end - self._bus.now()):
                return view(live.state, with_statuses=False)
        return await self.get_batch_result(batch_id)

    async def status(self) -> dict[str, Any]:
        """One screen: batches by state, queue, workers, the newest policy version."""
        phases = Counter(str(live.state.phase) for live in self.scheduler.batches())
        phases.update(str(result.state) for result in self.closed.values())
        workers = self.roster.workers()
        queue = await self._queue.depth()
        return {
            "run": self._bus.names.run,
            "batches": dict(phases),
            "queued_slices": queue.pending,
            "leased_slices": queue.leased,
            "workers": len(workers),
            "slots": sum(beat.slots for beat in workers),
            "busy_slots": sum(len(beat.running) for beat in workers),
            "policy_versions": sorted({beat.policy_version for beat in workers}),
            "malformed_results": self.scheduler.malformed_results,
        }

    def batches(self) -> list[BatchView | BatchResult]:
        """Closed batches, then open ones, each in order of submission."""
        return [*self.closed.values(), *(view(live.state) for live in self.scheduler.batches())]

    def batch(self, batch_id: int | str) -> BatchView | BatchResult:
        """One batch with the statuses of its settled tasks, or its stored result.

        Raises:
            NotFound: the id was never seen.
        """
        live = self.scheduler.find(batch_id)
        if live is not None:
            return view(live.state, with_statuses=True)
        closed = self.closed.get(str(batch_id))
        if closed is None:
            raise _not_registered(batch_id)
        return closed

    async def _open(
        self, batch_id: int | str, tasks: Sequence[Task], options: BatchOptions
    ) -> LiveBatch:
        opening, lines = await opening_entry(
            self._bus,
            self._publisher,
            self._settings.scheduler,
            batch_id=batch_id,
            tasks=tasks,
            options=options,
            results_seq=await self._results.last_seq(),
        )
        if self.scheduler.find(batch_id) is not None:
            raise InvalidRequest(f"batch {str(batch_id)!r} is already active")
        live = LiveBatch(open_batch(opening), lines)
        self.scheduler.add(live)
        try:
            await self._journal.append(opening)
        except BaseException:
            self.scheduler.drop(live)
            raise
        return live

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
        live = self.scheduler.find(batch_id)
        if live is None:
            raise _not_registered(batch_id)
        if live.state.opening.batch_type != batch_type:
            raise InvalidRequest(
                f"batch {live.name!r} is {live.state.opening.batch_type}, expected {batch_type}"
            )
        live.failure = None
        live.apply(FinalizeRequested(None if seconds is None else self._bus.now() + seconds))
        try:
            async with asyncio.timeout(wait_s):
                return await self._wait_closed(live)
        except BatchTimeout:
            raise
        except TimeoutError:
            return None
        finally:
            live.apply(FinalizeWithdrawn())

    async def _wait_closed(self, live: LiveBatch) -> BatchResult:
        while (result := self.closed.get(live.name)) is None:
            self._raise_failure()
            if live.failure is not None:
                raise live.failure
            now = self._bus.now()
            if expired(live.state, now):
                raise _timed_out(live.state)
            await live.changed.wait(
                live.state.deadline_at - now if not live.state.is_closed else None
            )
        return result

    async def _alarm(self, crew: Crew) -> None:
        """A coordinator that cannot go on wakes everybody who waits for a batch."""
        error = await crew.failed()
        for live in self.scheduler.batches():
            live.failure = error
            live.changed.beat()

    async def _drive(self, live: LiveBatch) -> None:
        """See one batch through: decide, perform, wait; until it is over and nothing is left."""
        failures = 0
        while True:
            due = decide(live.state, self._bus.now())
            due = tuple(effect for effect in due if not self._is_queued(live, effect))
            if not due:
                if live.state.outcome is not None:
                    self.scheduler.drop(live)
                    return
                wake = next_wake(live.state)
                await live.changed.wait(None if wake is None else wake - self._bus.now())
                continue
            try:
                async with live.lock:
                    if live.state.outcome is None or due == (RemoveLate(live.state.late),):
                        for effect in due:
                            await self._perform(live, effect)
                failures = 0
            except FencedError:
                raise
            except ExplorerError as error:
                pause_s = _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
                failures += 1
                logger.warning("batch=%s %s; again in %g s", live.name, error, pause_s)
                live.failure = error
                live.changed.beat()
                await live.changed.wait(pause_s)

    def _is_queued(self, live: LiveBatch, effect: Effect) -> bool:
        return isinstance(effect, PublishRetry) and (effect.task, effect.need.number) in live.queued

    async def _perform(self, live: LiveBatch, effect: Effect) -> None:
        match effect:
            case PublishTasks():
                await self.scheduler.publish_open(live)
                entry = Running(batch=live.state.batch)
                await self._journal.append(entry)
                live.apply(entry)
            case PublishRetry(task, need):
                await self.scheduler.publish_retry(live, task, need)
            case Close(closing):
                await self._journal.append(closing)
                live.apply(closing)
            case Deliver():
                await self._deliver(live)
            case Abort(reason):
                await self._abort(live, reason)
            case RemoveLate():
                await self.scheduler.remove_late(live)

    async def _deliver(self, live: LiveBatch) -> None:
        state = live.state
        found = statuses(state)
        metrics = batch_metrics(state, found)
        seq: int | None = None
        if state.opening.batch_type == "train":
            names = self._bus.names
            batch = manifest(
                state,
                run=names.run,
                stream=names.results_stream,
                finished=len(found),
                metrics=metrics,
            )
            seq = await publish_manifest(self._bus, self._publisher, batch)
        await self._clean(live, "finalized")
        entry = Finalized(
            batch=state.batch,
            batch_type=state.opening.batch_type,
            finished_task_count=len(found),
            completed_runs=state.completed_runs,
            experiences=state.experiences,
            metrics=metrics,
            manifest_seq=seq,
        )
        await self._journal.append(entry)
        self._settle(live, entry)

    async def _abort(self, live: LiveBatch, reason: str) -> None:
        entry = Aborted(
            batch=live.state.batch,
            batch_type=live.state.opening.batch_type,
            reason=reason,
            finished_task_count=0,
        )
        await self._journal.append(entry)
        self._settle(live, entry)
        await self._clean(live, reason)

    def _settle(self, live: LiveBatch, entry: Finalized | Aborted) -> None:
        live.apply(entry)
        self.closed[live.name] = _result_of(live.state)
        live.changed.beat()

    async def _clean(self, live: LiveBatch, reason: str) -> None:
        """Take what is left of a closed batch from queue and workers."""
        if live.state.settled < live.state.tasks.size:
            cancel = Cancel(batch=live.name, reason=reason)
            await self._bus.publish(self._bus.names.cancel, cancel.encode())
            await self._queue.purge(live.name)

    def _running(self) -> Crew:
        if self._crew is None:
            raise InvalidRequest("the coordinator is not prepared: call prepare() first")
        self._raise_failure()
        return self._crew

    def _raise_failure(self) -> None:
        if self._crew is not None and self._crew.failure is not None:
            raise self._crew.failure


def _result_of(state: BatchState) -> BatchResult:
    entry = state.outcome
    if entry is None:
        raise InvalidRequest(f"batch {state.batch!r} is still {state.phase}")
    return BatchResult(
        batch_id=state.batch,
        batch_type=entry.batch_type,
        state=state.phase,
        finished_task_count=entry.finished_task_count,
        metrics={} if isinstance(entry, Aborted) else entry.metrics,
        reason=entry.reason if isinstance(entry, Aborted) else "",
    )


def _not_registered(batch_id: int | str) -> NotFound:
    return NotFound(f"batch {batch_id!r} is not registered")


def _timed_out(state: BatchState) -> BatchTimeout:
    return BatchTimeout(
        f"batch {state.batch!r}: {state.settled} of {state.tasks.size} tasks settled in time; all "
        "results are kept: finalize again, or abort the batch"
    )
