"""From the path of a set to its source."""

from __future__ import annotations

import difflib
from pathlib import Path

from explorer_mq import plugins
from explorer_mq.tasksets.protocol import Source
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq.tasksets.sources.code import CodeSource
from explorer_mq.tasksets.sources.first_rows import FirstRows
from explorer_mq.tasksets.sources.huggingface import HuggingFaceSource
from explorer_mq.tasksets.sources.jsonl import JsonlSource
from explorer_mq.tasksets.sources.parquet import ParquetSource
from explorer_mq.tasksets.sources.reasoning_gym import PREFIX, ReasoningGymSource
from explorer_mq_schemas.errors import ConfigError

GROUP = "explorer_mq.tasksets"

_JSONL = frozenset((".jsonl", ".ndjson", ".json"))


def open_source(settings: TasksetSettings) -> Source:
    """The rows of a set; at most ``max_rows`` of them.

    Raises:
        ConfigError: there is nothing at its path, it cannot be read, or it has no rows.
    """
    source = _open(settings)
    if settings.max_rows is not None and settings.max_rows < len(source):
        source = FirstRows(source, settings.max_rows)
    if len(source) == 0:
        raise ConfigError(f"taskset {settings.name!r} has no rows: {settings.path} is empty")
    return source


def _open(settings: TasksetSettings) -> Source:
    path = Path(settings.path).expanduser()
    if path.is_dir():
        return HuggingFaceSource(settings, path)
    _refuse(settings, "subset", "split")
    if path.is_file():
        return _open_file(settings, path)
    if settings.path.startswith(PREFIX):
        return ReasoningGymSource(settings)
    if ":" in settings.path or settings.path in plugins.names(GROUP):
        return CodeSource(settings, GROUP)
    raise ConfigError(
        f"taskset {settings.name!r}: no file or directory {settings.path}{_nearby(path)}; of a "
        "dataset on the Hugging Face hub, download it and give its directory"
    )


def _open_file(settings: TasksetSettings, path: Path) -> Source:
    _refuse(settings, "options")
    if path.suffix in _JSONL:
        return JsonlSource(path)
    if path.suffix == ".parquet":
        return ParquetSource(path)
    raise ConfigError(
        f"taskset {settings.name!r}: {path} is neither .jsonl nor .parquet; for code write "
        f"{path}:ATTRIBUTE"
    )


def _refuse(settings: TasksetSettings, *fields: str) -> None:
    """What has no meaning for a source is an error, not ignored."""
    for field in fields:
        if getattr(settings, field):
            raise ConfigError(
                f"taskset {settings.name!r}: {settings.path} takes no {field}; drop the setting"
            )


def _nearby(path: Path) -> str:
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""
