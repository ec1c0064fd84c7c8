"""The scheduler: batches of tasks over durable streams, each run of each task done once.

Flow: :meth:`Scheduler.schedule` -> journal and task queue -> workers -> result stream ->
:class:`ResultFold` -> ``evolve`` -> the batch's :class:`Driver` asks ``decide`` what is due.

It holds no truth of its own: every state is the fold of the journal and of the result stream, so it
can be killed at any moment. Its caller takes the results of a batch itself (:class:`Collector`);
the coordinator builds on :meth:`open_batch` instead and hands batches to trainers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from explorer_mq.attempt_timeouts import AttemptTimeoutPublisher
from explorer_mq.batches import Batches
from explorer_mq.bus.connection import Bus
from explorer_mq.cancelling import Cancelling
from explorer_mq.collecting import Collector
from explorer_mq.core.records import Report
from explorer_mq.core.runners import state_table
from explorer_mq.core.snapshot import digest
from explorer_mq.crew import Crew
from explorer_mq.driver import Driver
from explorer_mq.fold import ResultFold
from explorer_mq.leadership import Leadership
from explorer_mq.live import LiveBatch
from explorer_mq.queueing import Queueing
from explorer_mq.recovery import recover
from explorer_mq.revocation import Revocation
from explorer_mq.roster import Roster, RunnerWrapper
from explorer_mq.settings import Settings
from explorer_mq.snapshots import Snapshots
from explorer_mq.steps import Step, Steps
from explorer_mq.streams import RunStreams
from explorer_mq.submission import BatchOptions, new_batch
from explorer_mq.watchdog import Watchdog
from explorer_mq_schemas.errors import InvalidRequest, TransientError
from explorer_mq_schemas.events import Event
from explorer_mq_schemas.ids import encode_token, new_id
from explorer_mq_schemas.results import Result
from explorer_mq_schemas.subjects import SliceKey
from explorer_mq_schemas.tasks import BatchType, Status, Task

if TYPE_CHECKING:
    from explorer_mq.scheduler_actor import SchedulerHandle

logger = logging.getLogger(__name__)


class Scheduler:
    """Schedules tasks of one run; a library in a process, or an actor over NATS.

    Args:
        bus: a connection to the run.
        settings: ``scheduler`` rules it, ``worker.beat_interval_s`` tells when a worker is silent.
        name: of the connection, told to whoever is refused because this one leads.
    """

    def __init__(self, bus: Bus, settings: Settings, *, name: str = "") -> None:
        self._bus = bus
        self.settings = settings
        self._settings = settings.scheduler
        self._pools = settings.worker.pools
        self._streams = RunStreams.over(bus)
        self._steps = Steps.of_environment()
        self.batches = Batches(window=settings.scheduler.dynamic_timeout.window_batches)
        self.roster = Roster(bus, beat_interval_s=settings.worker.beat_interval_s)
        self._queueing = Queueing(bus, self._streams.queue, lease_s=self._settings.lease_s)
        self.driver = Driver(self._streams, self._queueing, self.batches, self._steps)
        self.results = ResultFold(bus, self._streams.results, self.batches, self._note_result)
        self._snapshots = Snapshots(
            self._streams, self.batches, self._steps, every=self._settings.snapshot_results
        )
        self._revocation = Revocation(
            bus,
            self.roster,
            self._streams.results,
            self.tell,
            grace_s=self._settings.reconnect_grace_s,
        )
        self.watchdog = Watchdog(
            self._streams,
            self.batches,
            self.roster,
            self.tell,
            period_s=self._settings.stall_report_s,
        )
        self.collector = Collector(bus, self.batches, self.driver)
        self._leadership = Leadership(
            bus, name or new_id("scheduler"), ttl_s=self._settings.leader_ttl_s
        )
        self._cancelling = Cancelling(
            bus,
            self.batches,
            self.roster,
            self.driver,
            self._revocation,
            grace_s=self._settings.cancel_grace_s,
        )
        self._timeouts = AttemptTimeoutPublisher(bus, self.batches, self._settings.dynamic_timeout)
        self.roster.on_beat(self._look_at)
        self._crew: Crew | None = None

    @staticmethod
    def get_actor(bus: Bus) -> SchedulerHandle:
        """A handle that calls the running scheduler of the bus's run over NATS."""
        from explorer_mq.scheduler_actor import SchedulerHandle

        return SchedulerHandle(bus)

    async def start(self, *, standby: bool = False) -> None:
        """Lead the run, rebuild all state, and take up every open batch; no-op if running.

        Args:
            standby: wait for another leader to end in place of being refused.

        Raises:
            FencedError: another coordinator or scheduler leads this run.
            ContractError: journal or snapshot cannot be read.
        """
        if self._crew is not None:
            return
        await self._streams.publisher.start()
        crew = self._crew = Crew()
        try:
            await self._leadership.acquire(standby=standby)
            crew.start(self._leadership.hold(), name="leadership")
            await self._rebuild(crew)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop deciding; open batches stay as they are for the next leader. Idempotent."""
        crew, self._crew = self._crew, None
        if crew is None:
            return
        await crew.close()
        await self.results.close()
        await self._revocation.close()
        await self.roster.close()
        await self._leadership.release()
        await self._streams.publisher.close()

    @property
    def is_running(self) -> bool:
        """Started, and no background task has failed."""
        return self._crew is not None and self._crew.failure is None

    async def failed(self) -> BaseException:
        """Wait until the scheduler cannot go on, and return why (fenced, or a defect)."""
        return await self.running().failed()

    def running(self) -> Crew:
        """The background tasks.

        Raises:
            InvalidRequest: not started.
            ExplorerError: what ended one of them.
        """
        if self._crew is None:
            raise InvalidRequest("not started: call start() (a coordinator: prepare()) first")
        self.raise_failure()
        return self._crew

    def raise_failure(self) -> None:
        """Raise what ended a background task, if one has failed."""
        if self._crew is not None and self._crew.failure is not None:
            raise self._crew.failure

    async def open_batch(
        self, batch_id: int | str, tasks: Sequence[Task], options: BatchOptions
    ) -> LiveBatch:
        """Journal the batch and queue all its slices; returns when they are queued.

        The batch exists, whole, from the moment it is journalled: one that dies earlier leaves
        nothing, one that dies later leaves a batch its successor completes.

        Raises:
            InvalidRequest: the id is active or used up, or a task is not valid; nothing changed.
        """
        crew = self.running()
        encode_token(str(batch_id))
        with self.batches.reserve(batch_id):
            live = await new_batch(
                self._streams,
                self._settings,
                batch_id=batch_id,
                tasks=tasks,
                options=options,
                results_seq=self.results.last_seq,
            )
            self._steps.reached(Step.TASKS_STORED)
            await self._streams.journal.append(
                live.state.opening, then=lambda: self.batches.add(live)
            )
        self._steps.reached(Step.SUBMIT_JOURNALLED)
        self._snapshots.count(1)
        crew.start(self._drive(live), name=f"batch {live.name}")
        while live.state.phase == "pending":
            await live.changed.wait()
            self.raise_failure()
        return live

    async def schedule(self, tasks: Sequence[Task], batch_id: int | str) -> None:
        """Queue ``tasks`` as one batch whose results the caller collects; no-op without tasks.

        The first task tells whether it is an eval batch. Task ids are positions in ``tasks``.

        Raises:
            InvalidRequest: (a ``ValueError``) the id is active or used, or a task has no runs.
        """
        if tasks:
            kind: BatchType = "eval" if tasks[0].is_eval else "train"
            options = BatchOptions(batch_type=kind, collected=True)
            await self.open_batch(batch_id, tasks, options)

    def task_done_callback(self, key: SliceKey, result: Result, seq: int, at: float) -> None:
        """Fold one result header of the result stream; called for each, in stream order."""
        self.results.task_done(key, result, seq, at)

    async def get_payload_results(
        self,
        batch_id: int | str,
        min_num: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
        clear_timeout_tasks: bool = True,
        return_partial_tasks: bool = False,
    ) -> tuple[list[Status], list[bytes]]:
        """Wait for a scheduled batch and take its statuses and packed experiences.

        Args:
            batch_id: a batch of :meth:`schedule`; an unknown one gives ``([], [])`` at once.
            min_num: tasks that suffice once ``over_rollout.wait_after_min_s`` have passed.
            timeout: seconds from now; default the batch's own deadline.
            clear_timeout_tasks: give up what is not done by then, which ends the batch; False
                leaves it running, to be collected by another call.
            return_partial_tasks: take the completed runs of tasks given up, too.
        """
        return await self.collector.collect(
            batch_id,
            min_num=min_num,
            seconds=timeout,
            clear=clear_timeout_tasks,
            partial=return_partial_tasks,
        )

    async def get_statuses(
        self,
        batch_id: int | str,
        min_num: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
        clear_timeout_tasks: bool = True,
        return_partial_tasks: bool = False,
    ) -> list[Status]:
        """As :meth:`get_payload_results`, without the experiences."""
        statuses, _ = await self.collector.collect(
            batch_id,
            min_num=min_num,
            seconds=timeout,
            clear=clear_timeout_tasks,
            partial=return_partial_tasks,
            payloads=False,
        )
        return statuses

    async def drain_batch_payload_results(
        self, batch_id: int | str
    ) -> tuple[list[Status], list[bytes]]:
        """Take what is done, without waiting; the batch goes on if more is to come."""
        return await self.collector.collect(
            batch_id, min_num=None, seconds=0.0, clear=False, partial=False
        )

    async def discard_completed_results(self, batch_id: int | str) -> None:
        """Drop what is done of a batch without looking at it."""
        await self.collector.collect(
            batch_id, min_num=None, seconds=0.0, clear=False, partial=False, payloads=False
        )

    async def abort_batch(
        self, batch_id: int | str, return_partial_tasks: bool = False
    ) -> tuple[list[Status], list[bytes]]:
        """End a scheduled batch; with ``return_partial_tasks`` take every completed run of it."""
        if return_partial_tasks:
            return await self.collector.collect(
                batch_id, min_num=None, seconds=0.0, clear=True, partial=True
            )
        live = self.batches.find(batch_id)
        if live is not None:
            async with live.lock:
                if not live.state.is_closed:
                    await self.driver.abort(live, "aborted by the caller", keep_partial=False)
        return [], []

    def has_step(self, batch_id: int | str) -> bool:
        """Whether the batch has work that is pending, running, or done and not collected."""
        return self.batches.find(batch_id) is not None

    async def wait_all(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - the reference's name
    ) -> None:
        """Wait until every task of every open batch is over.

        Raises:
            TimeoutError: not within ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout):
            for live in self.batches.open():
                while live.state.outcome is None and live.state.settled < live.state.task_count:
                    await live.changed.wait()
                    self.raise_failure()

    def dynamic_timeout(self, timeout: float | None = None) -> float:
        """Seconds an attempt of a whole group may take now; ``timeout`` replaces the largest."""
        return self._timeouts.group_timeout_s(timeout or self._settings.max_timeout_s)

    def get_all_state(self) -> dict[str, Mapping[str, Any]]:
        """State of every busy runner by its id ``<worker>/<slot>``."""
        return self.roster.states()

    def get_runner_state(self, runner_id: str) -> Mapping[str, Any]:
        """State of one runner; empty when it is idle or unknown."""
        return self.roster.states().get(runner_id, {})

    def get_key_state(self, key: str) -> dict[str, Any]:
        """One value of the state by runner id, for the runners that have it."""
        return {
            runner: fields[key] for runner, fields in self.roster.states().items() if key in fields
        }

    def print_all_state(self) -> str:
        """Log the table of all runners' states, and return it."""
        table = state_table(self.roster.states(), self._bus.now())
        logger.info("runners\n%s", table)
        return table

    def digest(self) -> str:
        """sha256 over all durable state: equal before a crash and after the replay."""
        return digest(self.batches.snapshot())

    async def take_snapshot(self) -> None:
        """Store a snapshot now, e.g. before a planned restart."""
        await self._snapshots.take()

    async def _rebuild(self, crew: Crew) -> None:
        """Journal, then queue, then results.

        A slice leaves the queue only after its result is stored, so one of the two shows every slice.
        """
        window = self._settings.dynamic_timeout.window_batches
        after = await recover(self._bus, self._streams.journal, self.batches, window=window)
        crew.start(self._streams.journal.run(), name="journal")
        await self._queueing.ensure_pools(self._pools)
        await self._queueing.look_up(self.batches.open())
        await self.results.start(after)
        self._snapshots.results_seq = self.results.last_seq
        await self.roster.start()
        await self._revocation.start(crew)
        self._cancelling.start(crew)
        for live in self.batches.open():
            self._queueing.note_queued(live)
            logger.info("batch=%s taken up in state %s", live.name, live.state.phase)
            live.requeue = live.state.phase == "running"
            crew.start(self._drive(live), name=f"batch {live.name}")
        crew.start(self._alarm(crew), name="alarm")
        crew.start(self._follow(), name="results")
        crew.start(self._snapshots.run(), name="snapshots")
        crew.start(self._timeouts.run(self.driver.ended), name="time-outs")
        crew.start(self.watchdog.run(), name="watchdog")
        if self._settings.runner_state_report_interval_s:
            crew.start(self._report_states(), name="runner states")

    async def _drive(self, live: LiveBatch) -> None:
        await self.driver.drive(live)
        self._snapshots.count(1)
        await self._cancelling.confirm(live)

    async def _follow(self) -> None:
        while True:
            before = self.results.last_seq
            late = await self.results.follow()
            self._snapshots.results_seq = self.results.last_seq
            self._snapshots.count(self.results.last_seq - before)
            for live in late:
                try:
                    await self.driver.remove_late(live)
                except TransientError as error:
                    logger.warning("batch=%s late results stay for now: %s", live.name, error)

    async def _alarm(self, crew: Crew) -> None:
        """A scheduler that cannot go on wakes everybody who waits for a batch."""
        error = await crew.failed()
        for live in self.batches.open():
            live.failure = error
            live.changed.beat()

    async def _report_states(self) -> None:
        never = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._settings.runner_state_report_interval_s):
                    await never.wait()
            except TimeoutError:
                self.print_all_state()

    async def tell(self, event: Event) -> None:
        """Send an event to whoever listens."""
        try:
            await self._bus.publish(self._bus.names.event(event.kind), event.encode())
        except TransientError as error:
            logger.warning("event not sent: %s", error)

    def _look_at(self, runner: RunnerWrapper) -> None:
        """Tokens are progress; a pool nobody has named yet gets its consumers."""
        beat, crew = runner.beat, self._crew
        if beat is not None and crew is not None:
            self.watchdog.hear(beat)
            if self._queueing.unknown_pools(beat.pools):
                crew.start(self._ensure_pools(beat.pools), name=f"pools of {runner.worker}")

    async def _ensure_pools(self, pools: Sequence[str]) -> None:
        try:
            await self._queueing.ensure_pools(pools)
        except TransientError as error:
            logger.warning("pools %s not set up now: %s", ", ".join(pools), error)

    def _note_result(self, key: SliceKey, report: Report) -> None:
        self.watchdog.moved()
        runner = self.roster.find(report.worker)
        if runner is not None:
            runner.forget(key.batch, key.task, key.slice)
