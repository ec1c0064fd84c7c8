"""Rows that reasoning_gym generates: the same row for the same seed and number, none stored."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from explorer_mq.tasksets.lazy import needed
from explorer_mq.tasksets.protocol import Defaults, Row
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq_schemas.errors import ConfigError

PREFIX = "reasoning_gym:"


class ReasoningGymSource:
    """``reasoning_gym:NAME``, a generator with its own scoring; needs reasoning_gym.

    ``options`` is its configuration (``size``, ``min_terms``, ...). Without a ``seed`` among them
    the set's is used: rows drawn anew after a restart would be other rows under the same numbers.
    """

    def __init__(self, settings: TasksetSettings) -> None:
        self._title = f"taskset {settings.name!r} ({settings.path})"
        self._set = settings.path.removeprefix(PREFIX)
        self._options = {"seed": settings.seed, **settings.options}
        needed("reasoning_gym", self._title)
        factory = needed("reasoning_gym.factory", self._title)
        if self._set not in factory.DATASETS:
            close = difflib.get_close_matches(self._set, factory.DATASETS, n=1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
            raise ConfigError(f"{self._title}: reasoning_gym has no set {self._set!r}{hint}")
        try:
            self._dataset = factory.create_dataset(self._set, **self._options)
        except Exception as error:  # each set checks its configuration in its own way
            raise ConfigError(
                f"{self._title}: options {self._options} are refused: "
                f"{type(error).__name__}: {error}"
            ) from error

    @property
    def defaults(self) -> Defaults:
        """One answer, judged by the set itself, wherever the worker is."""
        return Defaults(
            workflow="single_turn",
            reward_fn="reasoning_gym",
            reward_fn_args={"dataset": self._set, "options": self._options},
            format_args={"prompt_key": "question", "response_key": "answer"},
        )

    def __len__(self) -> int:
        return len(self._dataset)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows with these numbers, generated now."""
        return [self._row(number) for number in numbers]

    def column(self, key: str) -> list[Any]:
        """The value of ``key`` in every row, or in its ``metadata``; generates the whole set."""
        rows = (self._row(number) for number in range(len(self)))
        return [row.get(key, row["metadata"].get(key)) for row in rows]

    def where(self, number: int) -> str:
        """Set and row."""
        return f"{self._title} row {number}"

    def _row(self, number: int) -> Row:
        try:
            return dict(self._dataset[number])
        except Exception as error:  # generators raise what they like
            raise ConfigError(
                f"{self.where(number)} cannot be generated: {type(error).__name__}: {error}"
            ) from error
