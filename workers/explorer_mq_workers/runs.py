"""One run's yield: checked, measured, and stamped with what every trainer expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from explorer_mq.core.metrics import aggregate_run_level_metrics, as_number
from explorer_mq_schemas.codec import pack
from explorer_mq_schemas.errors import ContractError, TaskError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.activity import Activity
from explorer_mq_workers.rewards import check_reward


@dataclass(frozen=True, slots=True)
class Work:
    """Runs of a task to be made; ``batch`` and ``task_id`` go into the ids of their experiences."""

    task: Task
    run_ids: tuple[int, ...]
    batch: int | str
    task_id: int | str
    activity: Activity = field(default_factory=Activity)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run: experiences and run-level metrics, or an error."""

    number: int
    experiences: list[Experience] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    error: BaseException | None = None


def experiences_of(found: Any, task: Task) -> list[Experience]:
    """What a workflow returned, as a list.

    Raises:
        TaskError: it is neither an experience nor a list of them.
    """
    if isinstance(found, Experience):
        return [found]
    if found is None:
        raise TaskError(
            f"workflow {task.workflow!r} returned nothing; it must return an Experience or a list "
            "of them"
        )
    if not isinstance(found, (list, tuple)):
        raise TaskError(
            f"workflow {task.workflow!r} returned {type(found).__name__}; expected an Experience "
            "or a list of them"
        )
    for one in found:
        if not isinstance(one, Experience):
            raise TaskError(
                f"workflow {task.workflow!r} returned a list with {type(one).__name__} in it; "
                "expected experiences only"
            )
    return list(found)


def finished_run(number: int, experiences: Sequence[Experience], task: Task, seconds: float) -> Run:
    """A run from its experiences, whose rewards and metrics become plain numbers.

    Raises:
        TaskError: there are none, or a reward or metric is not a finite number.
    """
    if not experiences:
        raise TaskError(f"workflow {task.workflow!r} returned no experience for run {number}")
    for experience in experiences:
        if experience.reward is not None:
            experience.reward = check_reward(task, "of the experience", {"": experience.reward})
        experience.metrics = _plain(experience.metrics or {}, task)
        experience.eid = replace(experience.eid, run=number)
    metrics = aggregate_run_level_metrics([one.metrics for one in experiences])
    metrics["time/run_execution"] = seconds
    return Run(number, list(experiences), metrics)


def stamp(run: Run, work: Work, *, version: int, drift: int) -> None:
    """Ids, and the fields of ``info`` that trainers rely on.

    Args:
        run: whose experiences are stamped.
        work: what the run is part of.
        version: the engine's policy version when the work began.
        drift: by how much it had grown when the work ended.
    """
    for experience in run.experiences:
        task_id = work.task_id if experience.eid.task == "" else experience.eid.task
        experience.eid = replace(experience.eid, batch=work.batch, task=task_id)
        experience.info = {
            **(experience.info or {}),
            "model_version": version,
            "model_version_drift": drift,
            "use_count": 0,
            "task_index": work.task.index,
        }


def packed(runs: Sequence[Run], task: Task) -> tuple[list[Run], bytes]:
    """The runs and the buffer of all their experiences.

    A run whose experiences cannot be stored becomes a failed one, so that it alone is repeated.
    """
    try:
        return list(runs), pack([one for run in runs for one in run.experiences])
    except ContractError:
        checked = [_storable(run, task) for run in runs]
    return checked, pack([one for run in checked for one in run.experiences])


def _storable(run: Run, task: Task) -> Run:
    try:
        pack(run.experiences)
    except ContractError as error:
        text = (
            f"workflow {task.workflow!r}, run {run.number}: its experience cannot be sent: {error}"
        )
        failed = TaskError(text)
        failed.__cause__ = error
        return Run(run.number, error=failed)
    return run


def _plain(metrics: dict[str, Any], task: Task) -> dict[str, float]:
    try:
        plain = {key: as_number(key, value) for key, value in metrics.items()}
    except ContractError as error:
        raise TaskError(f"workflow {task.workflow!r}: {error}") from error
    for key, value in plain.items():
        if not math.isfinite(value):
            raise TaskError(
                f"workflow {task.workflow!r}: metric {key!r} is {value}; metrics must be finite"
            )
    return plain
