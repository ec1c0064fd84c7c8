"""The training sets of a run, mixed into steps.

``read_batch(step)`` is a function of the settings, the step and what feedback has taught the
selectors; positions are computed from the step, not kept. Whoever loads the state that was saved at
a step reads the same rows from there on.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from explorer_mq.tasksets.feedback import SELECTOR_METRIC, observations
from explorer_mq.tasksets.mixing import Draw, Mixture
from explorer_mq.tasksets.selectors.opening import open_selector
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq.tasksets.state import Saved, SavedSet, check_continues
from explorer_mq.tasksets.taskset import Taskset, check_names
from explorer_mq_schemas.errors import ConfigError, InvalidRequest
from explorer_mq_schemas.tasks import Task


class TasksetScheduler:
    """Steps of ``batch_size`` tasks from one or several sets.

    Each epoch takes as many rows of every set as it has, in an order shuffled by the epoch's
    number. Steps span the ends of epochs; what is left in the end for less than a step is dropped.

    Args:
        sets: the training sets; the place in this list is the ``taskset_id`` of their tasks.
        batch_size: tasks per step.
        total_epochs: how often the data is gone through, unless ``total_steps`` is given.
        total_steps: how many steps there are, as many epochs as that takes.

    Raises:
        ConfigError: a set or selector cannot be opened, names repeat, or a number is below 1.
    """

    def __init__(
        self,
        sets: Sequence[TasksetSettings],
        *,
        batch_size: int,
        total_epochs: int = 1,
        total_steps: int | None = None,
    ) -> None:
        _check_positive(batch_size=batch_size, total_epochs=total_epochs, total_steps=total_steps)
        if not sets:
            raise ConfigError("no taskset to train on; add one to the settings")
        check_names(sets)
        self._batch_size = batch_size
        self._tasksets = [
            Taskset(settings, number, is_eval=False) for number, settings in enumerate(sets)
        ]
        self._selectors = [
            open_selector(taskset.settings, taskset.source) for taskset in self._tasksets
        ]
        self._mixture = Mixture([len(taskset) for taskset in self._tasksets])
        self.step = 0
        self.steps_total = total_steps or (
            total_epochs * self._mixture.rows_per_epoch // batch_size
        )

    def read_batch(self, step: int | None = None) -> list[Task]:
        """The tasks of a step; no tasks once all ``steps_total`` steps are read.

        Blocks while rows are read or generated: call it in a thread.

        Args:
            step: how many steps come before it; default the one after the step read last.

        Raises:
            ConfigError: a row cannot be read or made a task, or a selector lacks rows for the step.
        """
        step = self.step if step is None else step
        if step < 0:
            raise InvalidRequest(f"step {step} is before the first one, 0")
        if step >= self.steps_total:
            return []
        tasks: list[Task] = []
        for draw in self._mixture.draws(step * self._batch_size, self._batch_size):
            tasks += self._tasksets[draw.taskset_id].tasks(self._select(draw))
        self.step = step + 1
        return tasks

    def feedback(self, metrics: MutableMapping[str, Any]) -> None:
        """Take ``selector_metric`` out of a step's metrics and tell the selectors.

        Raises:
            InvalidRequest: it names sets or rows there are not, or values that are no numbers;
                nothing was learned.
        """
        found = metrics.pop(SELECTOR_METRIC, None) or {}
        for seen in observations(found, [len(taskset) for taskset in self._tasksets]):
            self._selectors[seen.taskset_id].feedback(seen.numbers, seen.values)

    def state_dict(self) -> dict[str, Any]:
        """Everything :meth:`read_batch` depends on beside the settings, as JSON."""
        return Saved(
            step=self.step,
            batch_size=self._batch_size,
            tasksets=tuple(
                SavedSet(
                    name=taskset.settings.name,
                    rows=len(taskset),
                    selector=taskset.settings.selector,
                    seed=taskset.settings.seed,
                    state=selector.state_dict(),
                )
                for taskset, selector in zip(self._tasksets, self._selectors, strict=True)
            ),
        ).model_dump(mode="json")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called.

        Raises:
            ConfigError: the state is of other sets, rows, selectors or another batch size: the
                rows could not go on as they would have.
        """
        saved = Saved.parse(state)
        now = Saved.parse(self.state_dict())
        check_continues(saved, now)
        for selector, entry in zip(self._selectors, saved.tasksets, strict=True):
            try:
                selector.load_state_dict(entry.state)
            except ConfigError as error:
                raise ConfigError(f"taskset {entry.name!r}: {error}") from error
        self.step = saved.step

    def _select(self, draw: Draw) -> list[int]:
        """The rows of a draw; a custom selector's are checked."""
        taskset = self._tasksets[draw.taskset_id]
        where = f"taskset {taskset.settings.name!r}, selector {taskset.settings.selector!r}"
        try:
            found = self._selectors[draw.taskset_id].select(draw.position, draw.count)
            numbers = [operator.index(number) for number in found]
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except Exception as error:  # custom ones may raise anything
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        if len(numbers) != draw.count:
            raise ConfigError(f"{where}: gave {len(numbers)} rows instead of {draw.count}")
        strange = [number for number in numbers if not 0 <= number < len(taskset)]
        if strange:
            raise ConfigError(f"{where}: gave row {strange[0]}, the set has {len(taskset)}")
        return numbers


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be 1 or more (got {number})")
