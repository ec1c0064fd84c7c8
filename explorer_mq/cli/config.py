"""``config show/schema/check``: what the settings are and where each came from."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from explorer_mq.cli.command import Command, Invocation
from explorer_mq.cli.output import print_json
from explorer_mq_schemas.errors import ConfigError

if TYPE_CHECKING:
    from explorer_mq.settings.reference import Entry


def _show(invocation: Invocation) -> int:
    from explorer_mq.settings import sources

    options = invocation.options
    settings = invocation.settings.model_dump(mode="json")
    entries = _chosen(options.section, settings)
    origins = sources(invocation.files, invocation.flags, os.environ)
    if options.json:
        for entry in entries:
            print_json(_fields(entry, settings, origins))
        return 0
    render = _variables if options.env else _tables
    for about, line in render(entries, settings):
        if about is None:
            sys.stdout.write(line + "\n")
            continue
        remark = f"from {_origin(about, origins)}" if options.sources else about.description
        sys.stdout.write(f"{line:<48} # {remark}\n")
    return 0


def _schema(_: Invocation) -> int:
    from explorer_mq.settings import Settings

    sys.stdout.write(json.dumps(Settings.model_json_schema(), indent=2) + "\n")
    return 0


def _check(invocation: Invocation) -> int:
    settings = invocation.settings
    files = ", ".join(map(str, invocation.files)) or "no files"
    if invocation.options.json:
        print_json({"ok": True, "run": settings.run, "files": list(map(str, invocation.files))})
    else:
        sys.stdout.write(f"ok: {files}, run {settings.run}\n")
    return 0


def _chosen(section: str | None, settings: dict[str, Any]) -> list[Entry]:
    """The settings in force of one section, or all; those of the other engine are left out."""
    from explorer_mq.settings import reference

    path = tuple((section or "").replace("-", "_").split(".")) if section else ()
    found = [entry for entry in reference.entries() if entry.path[: len(path)] == path]
    if not found:
        close = reference.nearest(path)
        hint = f"did you mean {close}?" if close else "`explorer-mq config show` lists all"
        raise ConfigError(f"no settings section {section!r}; {hint}")
    return [entry for entry in found if _in_force(entry, settings)]


def _in_force(entry: Entry, settings: dict[str, Any]) -> bool:
    chosen = _value(entry.path[:-1], settings).get("type", "") if entry.variant else ""
    return bool(chosen == entry.variant)


def _value(path: tuple[str, ...], settings: dict[str, Any]) -> Any:
    from explorer_mq.settings.load import shown

    value: Any = settings
    for key in path:
        value = value[key]
    return shown(value)


def _tables(entries: list[Entry], settings: dict[str, Any]) -> Iterator[tuple[Entry | None, str]]:
    """TOML that may be saved and read again; unset values are comments, since TOML has no null."""
    table: tuple[str, ...] = ()
    for entry in entries:
        if entry.path[:-1] != table:
            table = entry.path[:-1]
            yield None, f"\n[{'.'.join(table)}]"
        value = _value(entry.path, settings)
        text = _toml(value)
        yield entry, f"# {entry.path[-1]} =" if value is None else f"{entry.path[-1]} = {text}"


def _variables(
    entries: list[Entry], settings: dict[str, Any]
) -> Iterator[tuple[Entry | None, str]]:
    for entry in entries:
        value = _value(entry.path, settings)
        text = value if isinstance(value, str) else json.dumps(value)
        yield entry, f"{entry.variable}={text}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _fields(entry: Entry, settings: dict[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    return {
        "key": entry.dotted,
        "value": _value(entry.path, settings),
        "source": _origin(entry, origins),
        "variable": entry.variable,
        "description": entry.description,
    }


def _origin(entry: Entry, origins: dict[str, str]) -> str:
    """Where a value came from; a free table may have come from several places."""
    found = {
        origin for dotted, origin in origins.items() if f"{dotted}.".startswith(f"{entry.dotted}.")
    }
    return ", ".join(sorted(found)) or "default"


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("section", nargs="?", help="only this section, e.g. worker.engine")
    parser.add_argument("--sources", action="store_true", help="say where each value came from")
    parser.add_argument("--env", action="store_true", help="write environment variables")
    parser.add_argument("--json", action="store_true", help="one JSON object per setting")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


COMMANDS = (
    Command(
        name="config show",
        summary="all settings with values, descriptions and sources",
        run=_show,
        sections=("all",),
        arguments=_show_arguments,
    ),
    Command(
        name="config schema",
        summary="JSON Schema of a settings file, for editors",
        run=_schema,
    ),
    Command(
        name="config check",
        summary="check files, environment and flags; exit 2 when one is wrong",
        run=_check,
        sections=("all",),
        arguments=_check_arguments,
    ),
)
