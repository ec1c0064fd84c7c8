"""Tasks from a file of JSON lines: read lazily, refused with the number of the line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from explorer_mq_schemas.errors import ConfigError
from explorer_mq_schemas.tasks import Task

_SHOWN_KEYS = 8


def read_tasks(file: Path, template: Task) -> Iterator[Task]:
    """One task a row: ``template`` with the row as ``raw_task``; blank lines are skipped.

    Raises:
        ConfigError: the file cannot be read, or a row is no JSON object or lacks the prompt's or
            the response's key.
    """
    keys = [template.format_args["prompt_key"]]
    if template.reward_fn is not None:
        keys.append(template.format_args["response_key"])
    for number, row in _rows(file):
        for key in keys:
            if key not in row:
                has = ", ".join(list(row)[:_SHOWN_KEYS]) or "none"
                raise ConfigError(
                    f"{file} line {number}: no key {key!r}, the row has {has}; name the keys with "
                    "--prompt-key and --response-key"
                )
        yield template.model_copy(
            update={"raw_task": row, "index": {"file": str(file), "line": number}}
        )


def chunked(tasks: Iterator[Task], size: int | None) -> Iterator[list[Task]]:
    """Consecutive lists of ``size`` tasks, the last may be shorter; all in one without a size."""
    while chunk := list(itertools.islice(tasks, size)):
        yield chunk


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _row(file, number, line)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{file} line {number}: not JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{file} line {number}: a row must be a JSON object")
    return row
