"""Runs the workflow of a slice and says what came of it; user code never sees a message.

Flow: :meth:`WorkflowRunner.run_slice` -> load the workflow -> all runs (one call, or one by one, at
once, or in threads) -> stamp experiences -> :class:`SliceOutcome`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from explorer_mq.core.metrics import aggregate_run_level_metrics
from explorer_mq.plugins import load
from explorer_mq_schemas.codec import pack
from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.results import Failure
from explorer_mq_schemas.tasks import Slice, Status, Task
from explorer_mq_workers.boundary import boundary, failure_of
from explorer_mq_workers.engines.protocol import Engine
from explorer_mq_workers.model import Model
from explorer_mq_workers.rewards import check_reward
from explorer_mq_workers.workflows.protocol import Workflow

_load = functools.cache(load)
"""Reading the installed distributions takes milliseconds; a name never changes its meaning."""

ConcurrentMode = Literal["asynchronous", "sequential", "multi-threading"]


@dataclass(frozen=True, slots=True)
class SliceOutcome:
    """What the runs of a slice yielded: ``metrics[i]`` belongs to run ``completed[i]``."""

    completed: tuple[int, ...] = ()
    metrics: tuple[dict[str, float], ...] = ()
    experiences: list[Experience] = field(default_factory=list)
    failure: Failure | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Run:
    run: int
    experiences: list[Experience]
    metrics: dict[str, float]
    error: BaseException | None = None


class WorkflowRunner:
    """Runs workflows on one engine; runs of a slice go by ``concurrent_mode``."""

    def __init__(self, engine: Engine, *, concurrent_mode: ConcurrentMode = "asynchronous") -> None:
        self._engine = engine
        self._mode = concurrent_mode

    async def run_task(
        self, task: Task, batch_id: int | str, repeat_times: int = 1, run_id_base: int = 0
    ) -> tuple[Status, bytes]:
        """Run a task directly; never raises for what the workflow does.

        Returns its status (metrics per run) and the packed experiences, empty for eval tasks.
        """
        number = task.task_id if isinstance(task.task_id, int) else 0
        outcome = await self.run_slice(
            Slice(
                batch=str(batch_id),
                task_number=number,
                number=0,
                run_ids=tuple(range(run_id_base, run_id_base + repeat_times)),
                task=task,
            )
        )
        done = len(outcome.completed)
        message = outcome.failure.traceback if outcome.failure else None
        if message is not None and done:
            message = f"{done}/{repeat_times} runs completed successfully. First error: {message}"
        status = Status(
            completed_runs=done,
            total_runs=repeat_times,
            metrics=outcome.metrics or ({"time/run_execution": outcome.seconds},),
            message=message,
            task_id=task.task_id,
        )
        return status, b"" if task.is_eval else pack(outcome.experiences)

    async def run_slice(self, one: Slice) -> SliceOutcome:
        """Run every run of the slice; failures are part of the outcome, only cancelling raises."""
        started = time.monotonic()
        version = self._engine.policy_version
        try:
            runs = await self._run_all(one)
        except TaskError as error:
            return SliceOutcome(failure=failure_of(error), seconds=time.monotonic() - started)
        except Exception as error:  # noqa: BLE001 - any failure of a slice is reported, not raised
            return SliceOutcome(failure=failure_of(error), seconds=time.monotonic() - started)
        seconds = time.monotonic() - started
        good = [run for run in runs if run.error is None]
        first = next((run.error for run in runs if run.error is not None), None)
        drift = self._engine.policy_version - version
        for run in good:
            _stamp(run, one, version, drift)
        return SliceOutcome(
            completed=tuple(run.run for run in good),
            metrics=tuple(run.metrics for run in good),
            experiences=[experience for run in good for experience in run.experiences],
            failure=failure_of(first) if first is not None else None,
            seconds=seconds,
        )

    async def _run_all(self, one: Slice) -> Sequence[_Run]:
        with boundary(f"workflow {one.task.workflow!r}"):
            code = _load(one.task.workflow, "explorer_mq.workflows")
        if isinstance(code, type) and getattr(code, "can_repeat", False):
            return await self._run_repeatable(code, one)
        if self._mode == "sequential":
            return [await self._run_one(code, one, run) for run in one.run_ids]
        return await asyncio.gather(*(self._run_one(code, one, run) for run in one.run_ids))

    async def _run_repeatable(self, code: type[Workflow], one: Slice) -> list[_Run]:
        started = time.monotonic()
        with boundary(f"workflow {one.task.workflow!r}"):
            workflow = code(one.task, Model(self._engine, one.task.rollout_args))
            workflow.set_repeat_times(one.run_ids)
            found = await _call(workflow)
        by_run: dict[int, list[Experience]] = {run: [] for run in one.run_ids}
        for experience in _checked(found, one.task):
            if experience.eid.run not in by_run:
                raise TaskError(
                    f"workflow {one.task.workflow!r} returned run {experience.eid.run}, which was "
                    f"not asked for: {one.run_ids}"
                )
            by_run[experience.eid.run].append(experience)
        seconds = time.monotonic() - started
        return [_as_run(run, mine, one.task, seconds) for run, mine in by_run.items()]

    async def _run_one(self, code: Any, one: Slice, run: int) -> _Run:
        started = time.monotonic()
        try:
            with boundary(f"workflow {one.task.workflow!r}"):
                model = Model(self._engine, one.task.rollout_args)
                if isinstance(code, type):
                    found = await _call(code(one.task, model))
                elif inspect.iscoroutinefunction(code):
                    found = await code(one.task, model)
                else:
                    found = await asyncio.to_thread(code, one.task, model)
            experiences = _checked(found, one.task)
            for experience in experiences:
                experience.eid = replace(experience.eid, run=run)
            return _as_run(run, experiences, one.task, time.monotonic() - started)
        except Exception as error:  # noqa: BLE001 - one run's failure must not end its siblings
            return _Run(run, [], {}, error)


async def _call(workflow: Workflow) -> Any:
    if workflow.is_async:
        return await workflow.run_async()
    return await asyncio.to_thread(workflow.run)


def _checked(found: Any, task: Task) -> list[Experience]:
    """The experiences a workflow returned.

    Raises:
        TaskError: it returned none, or something else.
    """
    experiences = [found] if isinstance(found, Experience) else found
    if not isinstance(experiences, list) or not all(
        isinstance(one, Experience) for one in experiences
    ):
        raise TaskError(
            f"workflow {task.workflow!r} returned {type(found).__name__}; expected an Experience or "
            "a list of them"
        )
    if not experiences:
        raise TaskError(f"workflow {task.workflow!r} returned no experience")
    for experience in experiences:
        if experience.reward is not None:
            experience.reward = check_reward(task.workflow, {"reward": experience.reward})
    return experiences


def _as_run(run: int, experiences: list[Experience], task: Task, seconds: float) -> _Run:
    """Raises TaskError when the run yielded nothing."""
    if not experiences:
        raise TaskError(f"workflow {task.workflow!r} returned no experience for run {run}")
    metrics = aggregate_run_level_metrics([one.metrics for one in experiences])
    metrics["time/run_execution"] = seconds
    return _Run(run, experiences, metrics)


def _stamp(run: _Run, one: Slice, version: int, drift: int) -> None:
    """Ids and the fields every experience carries for trainers."""
    for experience in run.experiences:
        experience.eid = replace(experience.eid, batch=one.batch, task=one.task_number)
        experience.info.setdefault("model_version", version)
        experience.info.setdefault("model_version_drift", drift)
        experience.info.setdefault("use_count", 0)
        experience.info.setdefault("task_index", one.task.index)
