"""The explorer: reads tasks, submits steps, evaluates, waits for weights, and remembers where it is.

Flow: :meth:`Explorer.prepare` -> :meth:`Explorer.explore` repeats ``next_action`` and performs it.

All it must remember is stored with each batch (its note), in the same journal entry that makes the
batch exist: the step, and the state of the task sets after it was read. An explorer that dies goes
on with the action it would have taken; its monitors take each row once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explorer_mq.benchmark import Checkpoint, Score, find_checkpoints, publish_checkpoint
from explorer_mq.bus.connection import Bus
from explorer_mq.coordinator import RolloutCoordinator
from explorer_mq.core.closing import min_wait_num
from explorer_mq.core.pacing import Do, Pacing, Progress, next_action
from explorer_mq.monitors.fanout import Monitors
from explorer_mq.settings import Settings
from explorer_mq.tasksets.feedback import SELECTOR_METRIC
from explorer_mq.tasksets.scheduler import TasksetScheduler
from explorer_mq.tasksets.taskset import open_eval_tasksets
from explorer_mq.weight_sync import WeightSync
from explorer_mq_schemas.batches import BatchResult
from explorer_mq_schemas.errors import ConfigError, TransientError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.tasks import Task

if TYPE_CHECKING:
    from explorer_mq.coordinator_actor import CoordinatorHandle

logger = logging.getLogger(__name__)

_NOTE = "explorer"


class Explorer:
    """Drives the exploration of one run, on a coordinator of its own.

    Args:
        bus: a connection to the run.
        settings: ``explorer`` rules the loop, ``scheduler`` the batches, ``monitors`` the metrics.
        name: of the connection, told to whoever is refused because this one leads.
    """

    def __init__(self, bus: Bus, settings: Settings, *, name: str = "") -> None:
        self._bus = bus
        self._settings = settings.explorer
        self._over_rollout = settings.scheduler.over_rollout
        self.coordinator = RolloutCoordinator(bus, settings, name=name or new_id("explorer"))
        self._monitors = Monitors.open(settings.monitors, settings.run)
        self._weights = WeightSync(bus, self.coordinator.roster, settings.explorer.trainer)
        self._tasksets: TasksetScheduler | None = None
        self._pacing = pacing_of(settings)
        self._evals = [one.name for one in settings.explorer.eval_tasksets]
        self._version = 0
        self.progress = Progress()
        self.actions: list[str] = []
        """What was done since the start, e.g. ``submit 1``; for people and tests."""

    async def prepare(self, *, standby: bool = False) -> None:
        """Lead the run and find out where it stands; safe to call twice.

        Raises:
            FencedError: another explorer or coordinator leads this run.
            ConfigError: a task set cannot be opened, or has changed since the run began.
        """
        if self.is_alive():
            return
        if self._settings.tasksets:
            self._tasksets = await asyncio.to_thread(self._open_tasksets)
        await self.coordinator.prepare(standby=standby)
        if self._tasksets is not None:
            await self._resume()

    async def explore(self) -> None:
        """Explore until the tasks are used up.

        Raises:
            ConfigError: there are no task sets.
            ExplorerError: what ended the loop; the state is kept, and a new explorer goes on.
        """
        if self._tasksets is None:
            raise ConfigError("explorer.tasksets: no task set to explore; name at least one")
        while await self.explore_step():
            continue

    async def explore_step(self) -> bool:
        """Perform the next action; False when the run is over."""
        action = next_action(self._pacing, self.progress)
        match action.do:
            case Do.SUBMIT:
                await self._submit(action.step)
            case Do.EVALUATE:
                await self.eval(action.step)
            case Do.FINALIZE:
                await self._finalize(action.step)
            case Do.FINALIZE_EVALS:
                await self._finalize_evals(action.step)
            case Do.SYNC:
                await self.sync_weight()
            case Do.END:
                return False
        return True

    async def finish_current_steps(self) -> None:
        """Finalize every step and eval that is under way."""
        while self.progress.finalized < self.progress.submitted:
            await self._finalize(self.progress.finalized + 1)
        for step in self.progress.evals_open:
            await self._finalize_evals(step)

    def need_sync(self) -> bool:
        """Whether weights are synchronised after the step submitted last."""
        step = self.progress.submitted
        return self._pacing.is_boundary(step) and self.progress.synced < step

    def need_eval(self) -> bool:
        """Whether the step submitted last is one that is evaluated."""
        step = self.progress.submitted
        return self._pacing.is_evaluated(step) and self.progress.evaluated < step

    async def eval(self, step: int | None = None) -> None:
        """Submit a batch ``<step>/<set>`` for every eval set, and return without waiting for them."""
        step = self.progress.submitted if step is None else step
        for name in self._evals:
            batch_id = f"{step}/{name}"
            if self.coordinator.scheduler.batches.remembered(batch_id) is None:
                tasks = await asyncio.to_thread(self._eval_tasks, name)
                note = {_NOTE: {"eval": step}}
                await self.coordinator.submit_batch(
                    batch_id=batch_id, tasks=tasks, batch_type="eval", note=note
                )
        self._did(Do.EVALUATE, step)
        self.progress = replace(
            self.progress, evaluated=step, evals_open=(*self.progress.evals_open, step)
        )

    async def sync_weight(self) -> dict[str, int]:
        """Wait for newer weights than the last step was sampled with; the versions of all workers.

        Trainer-driven, it waits only for a trainer that asks for it.
        """
        began = time.monotonic()
        step = self.progress.submitted
        newest = await self._weights.newest()
        waits = self._pacing.style != "trainer_driven"
        if newest <= self._version and (waits or await self._weights.phase() == "requires_sync"):
            newest = await self._weights.wait_newer(
                self._version, seconds=self._settings.sync_timeout_s
            )
        loaded = await self._weights.wait_loaded(newest)
        self._version = newest
        self._did(Do.SYNC, step)
        self.progress = replace(self.progress, synced=step)
        row = {
            "time/sync_weight": time.monotonic() - began,
            "sync/policy_version": float(newest),
            **{f"sync/seconds/{worker}": s for worker, s in self._weights.seconds.items()},
        }
        self._monitors.log(row, step, kind="sync")
        return loaded

    async def benchmark(self) -> list[Score]:
        """Evaluate the base model and the checkpoints of ``explorer.checkpoint_dir``, one by one.

        With ``bench_on_latest_checkpoint`` only the latest; the base model is left out without
        ``eval_on_startup``, and once the run has a policy version, as workers no longer hold it.

        Raises:
            ConfigError: no eval set, or no checkpoint.
            TransientError: a checkpoint could not be loaded by every worker.
        """
        if not self._evals:
            raise ConfigError("explorer.eval_tasksets: no set to benchmark on; name at least one")
        is_fresh = await self._weights.newest() == 0
        found = find_checkpoints(
            self._settings.checkpoint_dir or Path(),
            latest_only=self._settings.bench_on_latest_checkpoint,
            with_base=self._settings.eval_on_startup and is_fresh,
        )
        return [await self._score(checkpoint) for checkpoint in found]

    async def _score(self, checkpoint: Checkpoint) -> Score:
        version = await publish_checkpoint(self._bus, checkpoint)
        loaded = await self._weights.wait_loaded(version)
        behind = sorted(worker for worker, held in loaded.items() if held < version)
        if behind:
            raise TransientError(
                f"{checkpoint.name} (policy version {version}) was not loaded by "
                f"{', '.join(behind)}; explorer-mq worker ls tells why"
            )
        metrics: dict[str, float] = {}
        for name in self._evals:
            batch_id = f"{new_id('bench')}/{name}"
            tasks = await asyncio.to_thread(self._eval_tasks, name)
            await self.coordinator.submit_batch(batch_id=batch_id, tasks=tasks, batch_type="eval")
            result = await self.coordinator.finalize_eval_batch(batch_id)
            metrics |= {
                key.replace("eval/", "bench/", 1): value for key, value in result.metrics.items()
            }
        self._monitors.log(metrics, checkpoint.step or 0, kind="bench")
        return Score(checkpoint.name, version, metrics)

    async def save_checkpoint(self) -> None:
        """Store a snapshot of all state; nothing is lost without it, a restart is only quicker."""
        await self.coordinator.scheduler.take_snapshot()

    async def get_weight(self, name: str) -> Any:
        """That tensor of the newest published policy version, as a numpy array.

        Raises:
            NotFound: no version was published, or it has no such tensor.
        """
        from explorer_mq.trainer.reading import read_weight

        return await read_weight(self._bus, name)

    def is_alive(self) -> bool:
        """Whether the explorer leads its run."""
        return self.coordinator.is_leading

    async def shutdown(self) -> None:
        """Stop; open batches stay as they are for the next explorer. Idempotent."""
        await self.coordinator.shutdown()
        await asyncio.to_thread(self._monitors.close)

    @staticmethod
    def get_actor(bus: Bus) -> CoordinatorHandle:
        """A handle that calls the running explorer of the bus's run over NATS."""
        from explorer_mq.coordinator_actor import CoordinatorHandle

        return CoordinatorHandle(bus)

    def _open_tasksets(self) -> TasksetScheduler:
        return TasksetScheduler(
            self._settings.tasksets,
            batch_size=self._settings.batch_size,
            total_epochs=self._settings.total_epochs,
            total_steps=self._settings.total_steps,
        )

    def _eval_tasks(self, name: str) -> list[Task]:
        (settings,) = [one for one in self._settings.eval_tasksets if one.name == name]
        (taskset,) = open_eval_tasksets([settings])
        return taskset.tasks()

    async def _submit(self, step: int) -> None:
        assert self._tasksets is not None
        tasks = await asyncio.to_thread(self._tasksets.read_batch, step - 1)
        if not tasks:
            self.progress = replace(self.progress, exhausted=True)
            return
        self._version = await self._weights.newest()
        note = {
            "step": step,
            "finalized": self.progress.finalized,
            "synced": self.progress.synced,
            "version": self._version,
            "tasksets": self._tasksets.state_dict(),
            "rows": [[task.index["taskset_id"], task.index["index"]] for task in tasks],
        }
        await self.coordinator.submit_batch(
            batch_id=step,
            tasks=tasks,
            min_wait_num=min_wait_num(len(tasks), self._over_rollout.ratio),
            note={_NOTE: note},
        )
        self._did(Do.SUBMIT, step)
        self.progress = replace(self.progress, submitted=step)

    async def _finalize(self, step: int) -> None:
        began = time.monotonic()
        result = self.coordinator.scheduler.batches.result(step)
        if result is None:
            result = await self.coordinator.finalize_train_batch(step)
        self._learn(result)
        self._did(Do.FINALIZE, step)
        self.progress = replace(self.progress, finalized=step)
        waited = {"explorer/time/wait_explore_step": time.monotonic() - began}
        self._log_step(result, {**waited, **await self._operations()})

    async def _finalize_evals(self, step: int) -> None:
        for name in self._evals:
            result = self.coordinator.scheduler.batches.result(f"{step}/{name}")
            if result is None:
                result = await self.coordinator.finalize_eval_batch(f"{step}/{name}")
            self._log_eval(result, step, name)
        self._did(Do.FINALIZE_EVALS, step)
        left = tuple(one for one in self.progress.evals_open if one != step)
        self.progress = replace(self.progress, evals_open=left)

    def _learn(self, result: BatchResult) -> None:
        """Tell the selectors how the step's tasks went."""
        assert self._tasksets is not None
        rows = result.note.get(_NOTE, {}).get("rows", [])
        found: dict[int, dict[str, list[float]]] = {}
        for (taskset, index), reward in zip(rows, result.rewards, strict=False):
            if reward is not None:
                seen = found.setdefault(taskset, {"indices": [], "values": []})
                seen["indices"].append(index)
                seen["values"].append(reward)
        self._tasksets.feedback({SELECTOR_METRIC: found})

    def _log_step(self, result: BatchResult, more: dict[str, float]) -> None:
        step = int(result.batch_id)
        version = float(result.note.get(_NOTE, {}).get("version", self._version))
        self._monitors.log({**result.metrics, "rollout/model_version": version, **more}, step)

    async def _operations(self) -> dict[str, float]:
        """How the system is doing, beside what was learned."""
        status = await self.coordinator.status()
        attempts = self.coordinator.scheduler.results.attempts
        slots = status["slots"]
        newest = await self._weights.newest()
        versions = status["policy_versions"] or [newest]
        return {
            "scheduler/queued_slices": float(status["queued_slices"]),
            "scheduler/leased_slices": float(status["leased_slices"]),
            "scheduler/retries": float(attempts.get("failed", 0)),
            "scheduler/timeouts": float(attempts.get("timeout", 0) + attempts.get("stalled", 0)),
            "scheduler/lost_attempts": float(attempts.get("lost", 0)),
            "scheduler/late_results": float(status["late_results"]),
            "scheduler/stalls": float(status["stalls"]),
            "workers/count": float(status["workers"]),
            "workers/utilization": status["busy_slots"] / slots if slots else 0.0,
            "staleness/versions_behind_max": float(newest - min(versions)),
        }

    def _log_eval(self, result: BatchResult, step: int, name: str) -> None:
        self._monitors.log(result.metrics, step, kind=f"eval/{name}")

    def _did(self, do: Do, step: int) -> None:
        self.actions.append(f"{do} {step}")
        logger.info("%s %d", do, step)

    async def _resume(self) -> None:
        """Take up the run where its journal says it stands."""
        assert self._tasksets is not None
        batches = self.coordinator.scheduler.batches
        known = {live.name: live for live in (*batches.closed(), *batches.open())}
        notes = {
            int(note["step"]): note
            for live in known.values()
            if (note := live.state.opening.note.get(_NOTE)) and "step" in note
        }
        if notes:
            await self._resume_from(notes)
        evals = sorted(
            {
                int(live.state.opening.note[_NOTE]["eval"])
                for live in known.values()
                if "eval" in live.state.opening.note.get(_NOTE, {})
            }
        )
        whole = [s for s in evals if all(f"{s}/{name}" in known for name in self._evals)]
        opened = tuple(s for s in whole if any(batches.find(f"{s}/{name}") for name in self._evals))
        self.progress = replace(self.progress, evaluated=max(whole, default=-1), evals_open=opened)
        for step in sorted(set(whole) - set(opened)):
            for name in self._evals:
                result = batches.result(f"{step}/{name}")
                if result is not None:
                    self._log_eval(result, step, name)

    async def _resume_from(self, notes: dict[int, dict[str, Any]]) -> None:
        assert self._tasksets is not None
        batches = self.coordinator.scheduler.batches
        submitted = max(notes)
        note = notes[submitted]
        self._tasksets.load_state_dict(note["tasksets"])
        self._version = int(note["version"])
        finalized = int(note["finalized"])
        for step in sorted(notes):
            result = batches.result(step)
            if result is None:
                continue
            if step == finalized + 1:
                finalized = step
                self._learn(result)
            if step <= finalized:
                self._log_step(result, {})
        self.progress = Progress(
            submitted=submitted, finalized=finalized, synced=int(note["synced"])
        )
        logger.info("run goes on: step %d submitted, %d finalized", submitted, finalized)


def pacing_of(settings: Settings) -> Pacing:
    """The rules of the loop that the settings describe."""
    explorer = settings.explorer
    return Pacing(
        style=explorer.sync_style,
        sync_interval=explorer.sync_interval,
        sync_offset=explorer.sync_offset,
        max_inflight_batches=explorer.max_inflight_batches,
        eval_interval=explorer.eval_interval if explorer.eval_tasksets else None,
        eval_on_startup=explorer.eval_on_startup,
    )
