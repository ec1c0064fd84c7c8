"""Runs the workflow of a slice and says what came of it; user code never sees a message.

Flow: :meth:`WorkflowRunner.run_slice` -> load the workflow -> all runs (one call, or one by one, at
once, or in threads) -> check, stamp and pack experiences -> :class:`SliceOutcome`. Each run has a
:class:`RunScope`; when the run ends, so do its engine requests.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from explorer_mq_schemas.beats import StateValue
from explorer_mq_schemas.errors import ConfigError, TaskError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.results import AttemptEnd, Failure
from explorer_mq_schemas.tasks import GenerationConfig, Slice, Status, Task
from explorer_mq_workers.activity import Activity
from explorer_mq_workers.boundary import boundary, failure_of
from explorer_mq_workers.calling import call, load_code
from explorer_mq_workers.engines.protocol import Engine
from explorer_mq_workers.model import Model
from explorer_mq_workers.runs import Run, Work, experiences_of, finished_run, packed, stamp
from explorer_mq_workers.scope import RunScope
from explorer_mq_workers.workflows.instances import Instances
from explorer_mq_workers.workflows.protocol import Workflow

ConcurrentMode = Literal["asynchronous", "sequential", "multi-threading"]

GROUP = "explorer_mq.workflows"


@dataclass(frozen=True, slots=True)
class SliceOutcome:
    """What the runs of a slice yielded: ``metrics[i]`` belongs to run ``completed[i]``.

    ``payload`` is the packed ``experiences``, empty for an eval task or when no run completed.
    ``failure`` is the first one, also when other runs completed. ``seconds`` is the wall time.
    ``end`` is how the attempt goes on record if it has to be repeated.
    """

    completed: tuple[int, ...] = ()
    metrics: tuple[dict[str, float], ...] = ()
    experiences: list[Experience] = field(default_factory=list)
    payload: bytes = b""
    failure: Failure | None = None
    seconds: float = 0.0
    end: AttemptEnd = "failed"


class WorkflowRunner:
    """Runs workflows on one engine.

    Args:
        engine: samples for all of them.
        concurrent_mode: how the runs of a slice go, unless its workflow is repeatable:
            ``sequential``; ``asynchronous``, all at once; ``multi-threading``, each in a thread
            with an event loop of its own.
        collect_partial_runs: go on with the other runs when one failed. Runs that completed before
            it are kept either way.

    Raises:
        ConfigError: there is no such mode.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        concurrent_mode: ConcurrentMode = "asynchronous",
        collect_partial_runs: bool = True,
    ) -> None:
        if concurrent_mode not in get_args(ConcurrentMode):
            raise ConfigError(
                f"concurrent_mode {concurrent_mode!r}: choose one of "
                f"{', '.join(get_args(ConcurrentMode))}"
            )
        self._engine = engine
        self._mode = concurrent_mode
        self._collect = collect_partial_runs
        self._instances = Instances()
        self._latest: Activity | None = None

    def get_runner_state(self) -> dict[str, StateValue]:
        """What the latest call is doing; empty before the first.

        ``workflow_id`` (batch/task/first run), ``model_version``, ``begin_time``, ``terminate_time``
        (Unix seconds, None while it runs), and what the workflow noted.
        """
        return self._latest.state() if self._latest is not None else {}

    async def run_task(
        self, task: Task, batch_id: int | str, repeat_times: int = 1, run_id_base: int = 0
    ) -> tuple[Status, bytes]:
        """Run a task directly; never raises for what the workflow does.

        Returns its status (metrics per run, the message with a traceback) and the packed
        experiences: ``b""`` for an eval task or when no run completed.
        """
        run_ids = tuple(range(run_id_base, run_id_base + repeat_times))
        activity = self.new_activity(batch_id, task.task_id, run_id_base)
        outcome = await self._outcome(Work(task, run_ids, batch_id, task.task_id, activity))
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
        return status, outcome.payload

    async def run_slice(self, one: Slice, activity: Activity | None = None) -> SliceOutcome:
        """Run every run of the slice; failures are part of the outcome, only cancelling raises.

        Args:
            one: the slice.
            activity: where its progress shows, from :meth:`new_activity`.
        """
        activity = activity or self.new_activity(one.batch, one.task_number, one.run_ids[0])
        return await self._outcome(
            Work(one.task, one.run_ids, one.batch, one.task_number, activity)
        )

    def new_activity(self, batch: int | str, task: int | str, run: int) -> Activity:
        """The progress of a call to come, whose first run is ``run``."""
        return Activity(self._engine, workflow_id=f"{batch}/{task}/{run}")

    async def _outcome(self, work: Work) -> SliceOutcome:
        started = time.monotonic()
        self._latest = work.activity
        work.activity.begin(self._engine.policy_version)
        try:
            return await self._execute(work)
        except Exception as error:  # noqa: BLE001 - any failure is reported, none ends the worker
            return SliceOutcome(failure=failure_of(error), seconds=time.monotonic() - started)
        finally:
            work.activity.finish()

    async def _execute(self, work: Work) -> SliceOutcome:
        started = time.monotonic()
        version = self._engine.policy_version
        runs = await self._run_all(work)
        drift = self._engine.policy_version - version
        for run in runs:
            stamp(run, work, version=version, drift=drift)
        payload = b""
        if not work.task.is_eval and any(run.experiences for run in runs):
            runs, payload = packed(runs, work.task)
        good = [run for run in runs if run.error is None]
        first = next((run.error for run in runs if run.error is not None), None)
        return SliceOutcome(
            completed=tuple(run.number for run in good),
            metrics=tuple(run.metrics for run in good),
            experiences=[experience for run in good for experience in run.experiences],
            payload=payload if good else b"",
            failure=failure_of(first) if first is not None else None,
            seconds=time.monotonic() - started,
        )

    async def _run_all(self, work: Work) -> list[Run]:
        if not work.run_ids:
            return []
        async with boundary(f"workflow {work.task.workflow!r}"):
            code = await load_code(work.task.workflow, GROUP)
        if not callable(code):
            raise TaskError(
                f"workflow {work.task.workflow!r} is a {type(code).__name__}; expected a function "
                "or a class"
            )
        if isinstance(code, type) and getattr(code, "can_repeat", False):
            return await self._run_repeatable(code, work)
        if self._mode == "sequential":
            return await self._run_in_turn(code, work)
        return await self._run_together(code, work)

    async def _run_in_turn(self, code: Any, work: Work) -> list[Run]:
        runs: list[Run] = []
        for number in work.run_ids:
            runs.append(await self._run_one(code, work, number))
            if runs[-1].error is not None and not self._collect:
                break
        return runs

    async def _run_together(self, code: Any, work: Work) -> list[Run]:
        """All at once; runs that are cancelled because another failed are left out."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._run_one(code, work, number), name=f"run {number}")
                for number in work.run_ids
            ]

            def end_all(ended: asyncio.Task[Run]) -> None:
                if not ended.cancelled() and ended.result().error is not None:
                    for task in tasks:
                        task.cancel()

            if not self._collect:
                for task in tasks:
                    task.add_done_callback(end_all)
        return [task.result() for task in tasks if not task.cancelled()]

    async def _run_one(self, code: Any, work: Work, number: int) -> Run:
        started = time.monotonic()
        task = work.task
        try:
            async with RunScope(work.activity) as scope, boundary(f"workflow {task.workflow!r}"):
                model = Model(self._engine, _sampling(task, number), scope=scope)
                found = await self._call(code, task, model)
            experiences = experiences_of(found, task)
            return finished_run(number, experiences, task, time.monotonic() - started)
        except Exception as error:  # noqa: BLE001 - one run's failure must not end its siblings
            return Run(number, error=error)

    async def _call(self, code: Any, task: Task, model: Model) -> Any:
        if not isinstance(code, type):
            return await self._invoke(functools.partial(code, task, model), task)
        workflow = await self._instance(code, task, model)
        found = await self._invoke(_entry(workflow), task)
        self._instances.give_back(workflow)
        return found

    async def _run_repeatable(self, code: type[Workflow], work: Work) -> list[Run]:
        started = time.monotonic()
        task, first = work.task, work.run_ids[0]
        async with RunScope(work.activity) as scope, boundary(f"workflow {task.workflow!r}"):
            model = Model(self._engine, _sampling(task, first), scope=scope)
            workflow = await self._instance(code, task, model)
            workflow.set_repeat_times(len(work.run_ids), first)
            found = experiences_of(await self._invoke(_entry(workflow), task), task)
        seconds = time.monotonic() - started
        yielded = _by_run(found, work)
        failures = dict(getattr(workflow, "failures", {}))
        self._instances.give_back(workflow)
        runs = []
        for at, number in enumerate(work.run_ids):
            try:
                if first + at in failures:
                    raise failures[first + at]
                runs.append(finished_run(number, yielded[at], task, seconds))
            except Exception as error:  # noqa: BLE001 - as above
                runs.append(Run(number, error=error))
        return runs

    async def _instance(self, code: type[Workflow], task: Task, model: Model) -> Workflow:
        """An instance to use; its constructor runs where its work will run."""
        take = functools.partial(self._instances.take, code, task, model)
        if getattr(code, "is_async", False):
            return take()
        made: Workflow = await call(take, name=f"workflow {task.workflow}")
        return made

    async def _invoke(self, function: Any, task: Task) -> Any:
        own_loop = self._mode == "multi-threading"
        return await call(function, name=f"workflow {task.workflow}", own_loop=own_loop)


def _entry(workflow: Workflow) -> Any:
    return workflow.run_async if getattr(workflow, "is_async", False) else workflow.run


def _by_run(found: list[Experience], work: Work) -> list[list[Experience]]:
    """The experiences of a repeatable workflow for each place in ``work.run_ids``.

    Raises:
        TaskError: it yielded a run that was not asked for.
    """
    first = work.run_ids[0]
    yielded: list[list[Experience]] = [[] for _ in work.run_ids]
    for experience in found:
        at = experience.eid.run - first
        if not 0 <= at < len(yielded):
            raise TaskError(
                f"workflow {work.task.workflow!r} returned run {experience.eid.run}; asked for were "
                f"{len(yielded)} runs from {first}"
            )
        yielded[at].append(experience)
    return yielded


def _sampling(task: Task, run: int) -> GenerationConfig:
    """The task's sampling parameters; a fixed seed must not make all runs of a group alike."""
    config = task.rollout_args
    if config.seed is None:
        return config
    return config.model_copy(update={"seed": config.seed + run})
