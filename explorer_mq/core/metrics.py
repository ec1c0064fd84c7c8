"""Metrics at three levels: experience -> run -> task -> batch.

A key is ``name[:aggregation]`` with aggregation mean (the default), sum, max, min or last; only the
part after the last colon counts, and an unknown suffix belongs to the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import comb
from numbers import Real
from typing import Any

import numpy as np

from explorer_mq_schemas.errors import ContractError

_AGGREGATIONS = ("mean", "sum", "max", "min", "last")
_TIMES = ("time/task_execution", "time/run_execution")
_DRAWS = 1000
_SEED = 42

Metrics = dict[str, float]


def aggregate_run_level_metrics(metrics: Sequence[Mapping[str, Any]]) -> Metrics:
    """One mapping for several: each key reduced by its own aggregation, suffix kept.

    Raises:
        ContractError: a value is not a real number; names the key.
    """
    return {key: _reduce(values, _split(key)[1]) for key, values in _columns(metrics).items()}


def calculate_task_level_metrics(
    metrics: Sequence[Mapping[str, Any]], is_eval: bool, repeat_times: int | None = None
) -> Metrics:
    """Metrics of a task from those of its runs.

    Train: as :func:`aggregate_run_level_metrics`. Eval: ``key/mean@n``, ``key/std@n`` (of the
    population) and, for n > 1, ``key/best@k`` and ``key/worst@k`` for k = n and the powers of two
    below it, and for the same k ``key/pass@k`` of values that are all 0 or 1: fewer than k of them,
    as runs failed, count as what pass@k is at least. n is ``repeat_times``, so that a run that
    failed does not rename the series; None takes the number of values. Times are plain means.

    Raises:
        ContractError: a value is not a real number; names the key.
    """
    if not is_eval:
        return aggregate_run_level_metrics(metrics)
    found: Metrics = {}
    for key, values in _columns(metrics).items():
        name, aggregation = _split(key)
        if aggregation != "mean":
            found[key] = _reduce(values, aggregation)
        elif any(time in name for time in _TIMES):
            found[name] = float(np.mean(values))
        else:
            found.update(_eval_metrics(name, values, repeat_times or len(values)))
    return found


def aggregate_metrics(metrics: Sequence[Mapping[str, Any]], prefix: str = "rollout") -> Metrics:
    """Batch level, train: ``<prefix>/<name>/{mean,max,min}``, or ``/<aggregation>`` for the rest."""
    found: Metrics = {}
    for key, values in _columns(metrics).items():
        name, aggregation = _split(key)
        kinds = ("mean", "max", "min") if aggregation == "mean" else (aggregation,)
        found.update({f"{prefix}/{name}/{kind}": _reduce(values, kind) for kind in kinds})
    return found


def aggregate_eval_metrics(
    metrics: Sequence[Mapping[str, Any]], prefix: str, detailed_stats: bool = False
) -> Metrics:
    """Batch level, eval: ``<prefix>/<name>``, or ``/{mean,max,min,std}`` with ``detailed_stats``.

    ``pass@k`` is left out when some tasks lack it: their values were not all 0 or 1, so it would
    be about the others only.
    """
    found: Metrics = {}
    columns = _columns(metrics)
    for key, values in columns.items():
        name = _split(key)[0]
        if len(values) < len(columns.get(name.replace("/pass@", "/best@"), ())):
            continue
        if detailed_stats:
            found.update(
                {
                    f"{prefix}/{name}/{kind}": _reduce(values, kind)
                    for kind in ("mean", "max", "min")
                }
            )
            found[f"{prefix}/{name}/std"] = float(np.std(values))
        else:
            found[f"{prefix}/{name}"] = float(np.mean(values))
    return found


def bootstrap_metric(values: Sequence[float], size: int) -> tuple[float, float]:
    """Expected best and worst of ``size`` values drawn with replacement; 1000 draws, seed 42.

    The legacy generator is what the golden values were made with; one call for all draws yields
    the same numbers as one call per draw, two hundred times as fast.
    """
    generator = np.random.RandomState(_SEED)
    drawn = generator.choice(np.asarray(values, np.float64), size=(_DRAWS, size), replace=True)
    return float(drawn.max(axis=1).mean()), float(drawn.min(axis=1).mean())


def pass_at_k(correct: int, total: int, k: int) -> float:
    """The chance that ``k`` of ``total`` samples, ``correct`` of them right, hold a right one.

    Without bias: 1 - C(n-c, k) / C(n, k), in integers up to one correctly rounded division.

    Source: Chen et al. 2021, arXiv:2107.03374, equation 1.

    Raises:
        ValueError: not 0 <= correct <= total, or not 1 <= k <= total.
    """
    if not (0 <= correct <= total and 1 <= k <= total):
        raise ValueError(f"no pass@{k} of {correct} in {total} samples")
    draws = comb(total, k)
    return (draws - comb(total - correct, k)) / draws


def as_number(key: str, value: Any) -> float:
    """The metric ``value`` as a float; any real number counts, numpy's and torch's scalars too.

    Raises:
        ContractError: it is something else; names ``key``.
    """
    plain = value
    if hasattr(value, "item"):
        with suppress(TypeError, ValueError, RuntimeError):  # an array of several numbers
            plain = value.item()
    if not isinstance(plain, Real):
        raise ContractError(f"metric {key!r} is {value!r}; metrics are real numbers")
    return float(plain)


def _eval_metrics(name: str, values: Sequence[float], count: int) -> Metrics:
    found = {
        f"{name}/mean@{count}": float(np.mean(values)),
        f"{name}/std@{count}": float(np.std(values)),
    }
    is_binary = all(value in {0.0, 1.0} for value in values)
    for size in _sizes(count):
        best, worst = bootstrap_metric(values, size)
        found[f"{name}/best@{size}"] = best
        found[f"{name}/worst@{size}"] = worst
        if is_binary:
            drawn = min(size, len(values))
            found[f"{name}/pass@{size}"] = pass_at_k(round(sum(values)), len(values), drawn)
    return found


def _sizes(count: int) -> list[int]:
    """Powers of two below ``count``, then ``count``; none for a single value."""
    if count <= 1:
        return []
    powers = [2**exponent for exponent in range(1, count.bit_length()) if 2**exponent < count]
    return [*powers, count]


def _split(key: str) -> tuple[str, str]:
    name, colon, suffix = key.rpartition(":")
    return (name, suffix) if colon and suffix in _AGGREGATIONS else (key, "mean")


def _columns(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in metrics:
        for key, value in row.items():
            name, aggregation = _split(key)
            plain = name if aggregation == "mean" else key
            columns.setdefault(plain, []).append(as_number(key, value))
    return columns


def _reduce(values: Sequence[float], aggregation: str) -> float:
    match aggregation:
        case "sum":
            return float(np.sum(values))
        case "max":
            return float(np.max(values))
        case "min":
            return float(np.min(values))
        case "last":
            return values[-1]
        case _:
            return float(np.mean(values))
