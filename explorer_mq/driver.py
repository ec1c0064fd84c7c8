"""Carrying out what ``decide`` says is due, batch by batch.

One :meth:`Driver.drive` per open batch repeats decide, perform, wait for a change. Every effect may
be cut off by a crash at any point: after replay ``decide`` asks for it again, and each is idempotent.
The journal's fence is the guarantee that only one coordinator decides; everything else saves work.
"""

from __future__ import annotations

import asyncio
import logging

from explorer_mq.batches import Batches
from explorer_mq.core.batch import abort_entry, decide, next_wake
from explorer_mq.core.outcome import batch_metrics, end_entry, manifest, statuses
from explorer_mq.core.state import (
    Abort,
    Close,
    Deliver,
    Effect,
    LateRemoved,
    PublishRetry,
    PublishTasks,
    RemoveLate,
)
from explorer_mq.crew import Pulse
from explorer_mq.delivery import publish_manifest
from explorer_mq.live import LiveBatch
from explorer_mq.queueing import Queueing
from explorer_mq.steps import Step, Steps
from explorer_mq.streams import RunStreams
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.errors import ExplorerError, FencedError
from explorer_mq_schemas.journal import Aborted, Finalized, Finalizing, Running

logger = logging.getLogger(__name__)

_BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_LARGE = 100
"""Tasks of a batch whose metrics take longer than handing them to a thread."""


class Driver:
    """Sees batches through; ``ended`` beats when one is over."""

    def __init__(
        self, streams: RunStreams, queueing: Queueing, batches: Batches, steps: Steps
    ) -> None:
        self._bus = streams.bus
        self._publisher = streams.publisher
        self._journal = streams.journal
        self._results = streams.results
        self._queueing = queueing
        self._batches = batches
        self._steps = steps
        self.ended = Pulse()

    async def drive(self, live: LiveBatch) -> None:
        """See one batch through: decide, perform, wait; until it is over and nothing is left.

        Raises:
            FencedError: another coordinator leads now.
        """
        failures = 0
        while True:
            now = self._bus.now()  # one time for both questions: between two, a wake could be lost
            if not live.requeue and not decide(live.state, now):
                if live.state.outcome is not None:
                    return
                wake = next_wake(live.state, now)
                await live.changed.wait(None if wake is None else wake - now)
                continue
            try:
                async with live.lock:
                    await self._perform_all(live)
                failures = 0
                live.failure = None
            except FencedError:
                raise
            except ExplorerError as error:
                pause_s = _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
                failures += 1
                logger.warning("batch=%s %s; again in %g s", live.name, error, pause_s)
                live.failure = error
                live.changed.beat()
                await self._bus.wait_reconnect(pause_s)

    async def abort(self, live: LiveBatch, reason: str, *, keep_partial: bool) -> None:
        """Give an open batch up; with ``keep_partial`` its completed runs are delivered first."""
        if keep_partial:
            await self.close(live, abort_entry(live.state, reason))
            return
        entry = Aborted(
            batch=live.state.batch, batch_type=live.state.opening.batch_type, reason=reason
        )
        await self._end(live, entry)
        await self.clean(live, reason)

    async def close(self, live: LiveBatch, entry: Finalizing) -> None:
        """Fix the batch's content."""
        await self._journal.append(entry, then=lambda: live.apply(entry))
        self._steps.reached(Step.CLOSE_JOURNALLED)

    async def remove_late(self, live: LiveBatch) -> None:
        """Delete the late results of ``live`` from the stream and say so."""
        seqs = live.state.late
        for seq in sorted(seqs):
            await self._results.delete(seq)
        logger.info("batch=%s removed %d late results", live.name, len(seqs))
        live.apply(LateRemoved(seqs))

    async def clean(self, live: LiveBatch, reason: str) -> None:
        """Take what is left of a closed batch from queue and workers."""
        await self._queueing.purge(live)
        await self.cancel(live, reason)

    async def cancel(self, live: LiveBatch, reason: str) -> None:
        """Tell workers to drop what they still do for ``live``."""
        cancel = Cancel(batch=live.name, reason=reason)
        await self._bus.publish(self._bus.names.cancel, cancel.encode())

    async def _perform_all(self, live: LiveBatch) -> None:
        """What is due once the lock is held; an abort may have come in between."""
        if live.requeue:
            await self._queueing.publish_open(live)
            live.requeue = False
        due = decide(live.state, self._bus.now())
        retries = [effect for effect in due if isinstance(effect, PublishRetry)]
        if retries:
            await self._queueing.publish_retries(live, retries)
            self._steps.reached(Step.RETRY_QUEUED)
        for effect in due:
            await self._perform(live, effect)

    async def _perform(self, live: LiveBatch, effect: Effect) -> None:
        match effect:
            case PublishTasks():
                await self._queueing.publish_open(live)
                self._steps.reached(Step.TASKS_QUEUED)
                entry = Running(batch=live.state.batch)
                await self._journal.append(entry, then=lambda: live.apply(entry))
                self._steps.reached(Step.RUNNING_JOURNALLED)
            case Close(closing):
                await self.close(live, closing)
            case Deliver():
                await self._deliver(live)
            case Abort(reason):
                await self.abort(live, reason, keep_partial=False)
            case RemoveLate():
                await self.remove_late(live)
            case PublishRetry():
                pass

    async def _deliver(self, live: LiveBatch) -> None:
        state = live.state
        found = statuses(state)
        if state.task_count < _LARGE:
            metrics = batch_metrics(state, found)
        else:
            metrics = await asyncio.to_thread(batch_metrics, state, found)
        seq: int | None = None
        if state.opening.batch_type == "train" and not state.opening.collected:
            names = self._bus.names
            batch = manifest(
                state,
                run=names.run,
                stream=names.results_stream,
                finished=len(found),
                metrics=metrics,
            )
            seq = await publish_manifest(self._bus, self._publisher, batch)
            self._steps.reached(Step.BATCH_PUBLISHED)
        if state.settled < state.task_count:
            reason = "" if state.closing is None else state.closing.reason
            await self.clean(live, f"batch closed: {reason}")
            self._steps.reached(Step.QUEUE_CLEANED)
        entry = end_entry(state, finished=len(found), metrics=metrics, manifest_seq=seq)
        await self._end(live, entry)

    async def _end(self, live: LiveBatch, entry: Finalized | Aborted) -> None:
        def end() -> None:
            live.apply(entry)
            self._batches.settle(live)

        await self._journal.append(entry, then=end)
        self._steps.reached(Step.END_JOURNALLED)
        self.ended.beat()
