"""What the pipeline saw of rows, on its way to the selectors."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from explorer_mq_schemas.errors import InvalidRequest

SELECTOR_METRIC = "selector_metric"
"""Under this key the pipeline hands back ``{taskset_id: {"indices": [...], "values": [...]}}``."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Mean rewards of rows of one set."""

    taskset_id: int
    numbers: list[int]
    values: list[float]


def observations(found: Mapping[Any, Any], rows: Sequence[int]) -> list[Observation]:
    """``selector_metric``, checked against how many ``rows`` each set has.

    Raises:
        InvalidRequest: sets or rows there are not, or values that are no finite numbers.
    """
    return [_observation(key, value, rows) for key, value in found.items()]


def _observation(key: Any, found: Any, rows: Sequence[int]) -> Observation:
    where = f"{SELECTOR_METRIC}[{key!r}]"
    try:
        taskset_id = int(key)  # JSON makes a text of it
        numbers = [operator.index(number) for number in found["indices"]]
        values = [float(value) for value in found["values"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"{where}: expected lists indices and values: {error!r}") from error
    if not 0 <= taskset_id < len(rows):
        raise InvalidRequest(f"{where}: there are {len(rows)} tasksets")
    if len(numbers) != len(values):
        raise InvalidRequest(f"{where}: {len(numbers)} indices, but {len(values)} values")
    for number, value in zip(numbers, values, strict=True):
        if not 0 <= number < rows[taskset_id]:
            raise InvalidRequest(f"{where}: no row {number}, the set has {rows[taskset_id]}")
        if not math.isfinite(value):
            raise InvalidRequest(f"{where}: the value of row {number} is {value}")
    return Observation(taskset_id, numbers, values)
