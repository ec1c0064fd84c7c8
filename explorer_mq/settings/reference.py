"""Every setting by its dotted path: what help, messages and ``config show`` are made of."""

from __future__ import annotations

import difflib
import functools
import pathlib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from explorer_mq.settings.engines import DEFAULT_ENGINE
from explorer_mq.settings.model import Settings

ENV_PREFIX = "EXPLORER_MQ_"
VARIANT_KEY = "type"

_TEXT_KINDS = frozenset((str, pathlib.Path))

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting; ``variant`` names the engine it belongs to, "" for all others."""

    path: Path
    annotation: Any
    default: Any
    description: str
    variant: str = ""

    @property
    def dotted(self) -> str:
        """``section.field``, as in flags and messages."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + "__".join(self.path).upper()

    @property
    def takes_text(self) -> bool:
        """Its values are text or paths, so ``7`` on a command line means ``"7"``."""
        return any(kind in _TEXT_KINDS for kind in _plain_types(self.annotation))

    @property
    def takes_none(self) -> bool:
        """It may be unset, written ``null``."""
        return type(None) in _plain_types(self.annotation)

    @property
    def is_table(self) -> bool:
        """Its keys are free: ``extra_args.<anything>``."""
        return dict in _plain_types(self.annotation)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All settings, in the order of the models."""
    return tuple(_walk(Settings, (), ""))


@functools.cache
def sections() -> dict[Path, str]:
    """Every table of settings and its description."""
    return dict(_sections(Settings, ()))


@functools.cache
def variant_roots() -> dict[Path, str]:
    """Tables whose keys depend on their ``type``, and its default."""
    return {entry.path[:-1]: DEFAULT_ENGINE for entry in entries() if entry.variant}


def find(path: Path) -> Entry | None:
    """The setting at ``path``, or the free table that holds it."""
    known = _by_path()
    return known.get(path) or next(
        (
            known[path[:length]]
            for length in range(len(path) - 1, 0, -1)
            if path[:length] in known and known[path[:length]].is_table
        ),
        None,
    )


def nearest(path: Path) -> str:
    """The known dotted path most like ``path``, or ""."""
    dotted = ".".join(path)
    known = [entry.dotted for entry in entries()] + [".".join(table) for table in sections()]
    close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    leaves = {entry.path[-1]: entry.dotted for entry in reversed(entries())}
    close = difflib.get_close_matches(path[-1], leaves, n=1, cutoff=0.7)
    return leaves[close[0]] if close else ""


@functools.cache
def _by_path() -> dict[Path, Entry]:
    return {entry.path: entry for entry in reversed(entries())}


def _walk(model: type[BaseModel], path: Path, variant: str) -> Iterator[Entry]:
    for name, field in model.model_fields.items():
        below = (*path, name)
        models = _models(field)
        if not models:
            default = field.get_default(call_default_factory=True, validated_data={})
            yield Entry(below, field.annotation, default, field.description or "", variant)
        for tag, child in models.items():
            yield from _walk(child, below, tag or variant)


def _sections(model: type[BaseModel], path: Path) -> Iterator[tuple[Path, str]]:
    for name, field in model.model_fields.items():
        models = _models(field)
        if models:
            yield (*path, name), field.description or ""
        for child in models.values():
            yield from _sections(child, (*path, name))


def _models(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The tables a field may hold by tag; one without a tag for a plain section."""
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {"": kind}
    found: dict[str, type[BaseModel]] = {}
    for member in typing.get_args(kind):
        for mark in getattr(member, "__metadata__", ()):
            if isinstance(mark, Tag):
                found[mark.tag] = typing.get_args(member)[0]
    return found


def _plain_types(annotation: Any) -> set[Any]:
    """The classes an annotation accepts; literals count as the class of their values."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_plain_types(part) for part in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    return {origin or annotation}
