"""The contract for other languages: JSON Schemas and an AsyncAPI document, drawn from the models.

``python -m explorer_mq_schemas.generate [directory]`` writes ``json/<Message>.json`` and
``asyncapi.yaml``; a test fails when the committed files differ from what is rendered here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from explorer_mq_schemas.asyncapi import document
from explorer_mq_schemas.batches import BatchResult, BatchView, TrainBatchManifest
from explorer_mq_schemas.beats import Claims, WorkerBeat
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.events import Event
from explorer_mq_schemas.journal import JournalEntry
from explorer_mq_schemas.messages import Message, ObjectRef
from explorer_mq_schemas.policy import PolicyAnnouncement
from explorer_mq_schemas.results import Attempt, DeadLetter, Result
from explorer_mq_schemas.tasks import Slice, Status, Task
from explorer_mq_schemas.timeouts import AttemptTimeouts

MESSAGES: tuple[type[Message], ...] = (
    Attempt,
    AttemptTimeouts,
    BatchResult,
    BatchView,
    Cancel,
    Claims,
    DeadLetter,
    Event,
    ObjectRef,
    PolicyAnnouncement,
    Result,
    Slice,
    Status,
    Task,
    TrainBatchManifest,
    WorkerBeat,
)
"""Every message that travels on its own, besides the journal entries."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$./-]*\Z")
_YAML_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def render() -> dict[str, str]:
    """Every generated file: its text by its path below the ``schemas`` directory."""
    schemas = {message.__name__: message.model_json_schema() for message in MESSAGES}
    schemas["JournalEntry"] = TypeAdapter(JournalEntry).json_schema()
    files = {
        f"json/{name}.json": json.dumps({"$schema": _DIALECT, **schema}, indent=2) + "\n"
        for name, schema in sorted(schemas.items())
    }
    files["asyncapi.yaml"] = "\n".join(_yaml_lines(document(), 0)) + "\n"
    return files


def write(directory: Path) -> list[Path]:
    """Bring the files below ``directory`` up to date; returns those that changed."""
    changed = []
    for name, text in render().items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def _yaml_lines(value: Any, depth: int) -> Iterator[str]:
    """Block-style YAML of JSON-like data; scalars are JSON, which YAML includes."""
    margin = "  " * depth
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _yaml_entry(f"{margin}{_yaml_key(key)}:", item, depth)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for item in value:
            yield from _yaml_entry(f"{margin}-", item, depth)
    else:
        yield margin + json.dumps(value)


def _yaml_entry(head: str, item: Any, depth: int) -> Iterator[str]:
    if isinstance(item, (Mapping, list, tuple)) and item:
        yield head
        yield from _yaml_lines(item, depth + 1)
    else:
        yield f"{head} {json.dumps(item)}"


def _yaml_key(key: str) -> str:
    plain = _PLAIN_KEY.match(key) and key.lower() not in _YAML_WORDS
    return key if plain else json.dumps(key)


def main(arguments: Sequence[str]) -> int:
    """Write the files and name those that changed on standard output."""
    directory = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    for path in write(directory):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
