"""Arguments, feature columns and absent state of the built-in selectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from explorer_mq.settings.section import Section
from explorer_mq.tasksets.protocol import Source
from explorer_mq_schemas.errors import ConfigError
from explorer_mq_schemas.messages import first_fault

Arguments = TypeVar("Arguments", bound=Section)


class NoArguments(Section):
    """For selectors that take none."""


class Stateless:
    """A selector that learns nothing: what it selects follows from the position alone."""

    def feedback(self, numbers: Sequence[int], values: Sequence[float]) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up.

        Raises:
            ConfigError: ``state`` is another selector's.
        """
        if state:
            raise ConfigError(f"this selector has no state, but there is {sorted(state)}")


def parse(kind: type[Arguments], args: Mapping[str, Any]) -> Arguments:
    """``args`` as checked arguments.

    Raises:
        ConfigError: one is unknown, missing or wrong; names it.
    """
    try:
        return kind.model_validate(dict(args))
    except ValidationError as error:
        raise ConfigError(f"selector_args.{first_fault(error)}") from error


def features(source: Source, keys: Sequence[str]) -> NDArray[np.float64]:
    """The values of ``keys`` in all rows, as [rows, keys].

    Raises:
        ConfigError: a value is missing or no finite number; says where.
    """
    columns = [_numbers(source, key) for key in keys]
    return np.array(columns, np.float64).T


def _numbers(source: Source, key: str) -> list[float]:
    values = source.column(key)
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"{source.where(number)}: feature {key!r} is {value!r}; expected a number"
            )
        if not math.isfinite(value):
            raise ConfigError(f"{source.where(number)}: feature {key!r} is {value}")
    return values


def check_count(rows: int, count: int) -> None:
    """For selectors that give each row at most once per step.

    Raises:
        ConfigError: a step wants more than there are.
    """
    if count > rows:
        raise ConfigError(
            f"a step needs {count} different rows, the set has {rows}; lower the batch size, or "
            "take selector sequential or shuffle, which go round"
        )
