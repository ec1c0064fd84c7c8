"""One set of tasks: its rows and what makes tasks of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from explorer_mq.tasksets.formatter import Formatter
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq.tasksets.sources.opening import open_source
from explorer_mq_schemas.errors import ConfigError
from explorer_mq_schemas.tasks import Task


class Taskset:
    """Tasks by the number of their row; ``taskset_id`` is the set's place in the settings.

    Raises:
        ConfigError: there is nothing at its path, it cannot be read, or it has no rows.
    """

    def __init__(self, settings: TasksetSettings, taskset_id: int, *, is_eval: bool) -> None:
        self.settings = settings
        self.source = open_source(settings)
        self._formatter = Formatter(settings, self.source, taskset_id, is_eval=is_eval)

    def __len__(self) -> int:
        return len(self.source)

    def tasks(self, numbers: Sequence[int]) -> list[Task]:
        """The tasks of the rows with these numbers, read now.

        Raises:
            ConfigError: a row cannot be read, or no task can be made of it.
        """
        rows = self.source.rows(numbers)
        return [
            self._formatter.task(row, number) for row, number in zip(rows, numbers, strict=True)
        ]


class EvalTaskset:
    """A set whose rows are all taken once, in their order."""

    def __init__(self, settings: TasksetSettings, taskset_id: int = 0) -> None:
        if settings.selector != "sequential":
            raise ConfigError(
                f"taskset {settings.name!r} is for evaluation, where all rows are taken in order; "
                f"drop selector {settings.selector!r}"
            )
        self.name = settings.name
        self._taskset = Taskset(settings, taskset_id, is_eval=True)

    def __len__(self) -> int:
        return len(self._taskset)

    def tasks(self) -> list[Task]:
        """All tasks.

        Raises:
            ConfigError: a row cannot be read, or no task can be made of it.
        """
        return self._taskset.tasks(range(len(self)))

    def batches(self, batch_size: int) -> Iterator[list[Task]]:
        """All tasks, ``batch_size`` at a time; the last batch may be shorter.

        Raises:
            ConfigError: as :meth:`tasks`, at the batch with that row.
        """
        for start in range(0, len(self), batch_size):
            yield self._taskset.tasks(range(start, min(start + batch_size, len(self))))


def check_names(sets: Iterable[TasksetSettings]) -> None:
    """Names tell sets apart in metrics, batch ids and saved states.

    Raises:
        ConfigError: two sets have the same one.
    """
    seen: set[str] = set()
    for settings in sets:
        if settings.name in seen:
            raise ConfigError(f"two tasksets are called {settings.name!r}; name them apart")
        seen.add(settings.name)


def open_eval_tasksets(sets: Sequence[TasksetSettings]) -> list[EvalTaskset]:
    """The evaluation sets of a run, in the order of the settings.

    Raises:
        ConfigError: a set cannot be opened, or two have the same name.
    """
    check_names(sets)
    return [EvalTaskset(settings, number) for number, settings in enumerate(sets)]
