"""Answers to reasoning_gym's problems, judged by the set they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.tasks import Task

_COMPARES_TUPLES = frozenset(("arc_agi", "rearc"))
"""Their grids are tuples, which JSON makes lists of: the right answer would then score 0.05. Of the
105 sets of reasoning_gym 0.1.25 no other judges its own answer differently after a trip over JSON."""


def reasoning_gym(
    task: Task,
    answer: str,
    *,
    dataset: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> float:
    """The score the set gives the answer, from 0 to 1; needs reasoning_gym on the worker.

    Judged is what stands in the last ``<answer>`` tag; without one, what follows ``</think>``;
    without that, the whole text.

    Args:
        task: its row is the set's: ``question``, ``answer``, ``metadata``.
        answer: the text to judge.
        dataset: name of the set; default the row's ``metadata.source_dataset``.
        options: the set's configuration; some sets judge by it.

    Raises:
        TaskError: the row names no set, there is no such set, or reasoning_gym is not installed.
    """
    row = task.raw_task
    metadata = row.get("metadata") or {}
    name = dataset or metadata.get("source_dataset")
    if name is None:
        raise TaskError(f"the task's row is none of reasoning_gym's; it has {sorted(row)}")
    if name in _COMPARES_TUPLES:
        row = {**row, "metadata": _tuples(metadata)}
    judge = _judge(name, json.dumps(dict(options or {}), sort_keys=True))
    return float(judge.score_answer(_final(answer), row))


@lru_cache(maxsize=64)
def _judge(name: str, options: str) -> Any:
    """The set, built once per configuration: some read data files then."""
    try:
        factory = import_module("reasoning_gym.factory")
    except ImportError as error:
        raise TaskError(
            "this worker lacks reasoning_gym: pip install 'explorer-mq[tasksets]'"
        ) from error
    if name not in factory.DATASETS:
        raise TaskError(f"reasoning_gym has no set {name!r}")
    return factory.create_dataset(name, **json.loads(options))


def _final(answer: str) -> str:
    extract = import_module("reasoning_gym.utils").extract_answer
    tagged: str | None = extract(answer)
    return answer.rpartition("</think>")[2].strip() if tagged is None else tagged


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(part) for part in value)
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return value
