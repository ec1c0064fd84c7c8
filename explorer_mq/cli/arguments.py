"""Splitting a command line into settings and the command's own words.

``@ FILE`` and ``@FILE`` name settings files; ``--section.field VALUE`` (or ``=VALUE``) sets one
value, as does ``--run VALUE``. They may stand anywhere; a lone ``--`` ends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from explorer_mq.cli.command import SettingFlags
from explorer_mq_schemas.errors import ConfigError

_ROOT_FLAGS = frozenset(("--run",))


@dataclass(frozen=True, slots=True)
class SplitLine:
    """A command line in its three parts."""

    words: tuple[str, ...]
    files: tuple[Path, ...]
    flags: SettingFlags


def split(line: Sequence[str]) -> SplitLine:
    """The parts of ``line``, each in its order.

    Raises:
        ConfigError: a file or value is missing at the end.
    """
    words: list[str] = []
    files: list[Path] = []
    flags: list[tuple[str, str]] = []
    rest = iter(line)
    for word in rest:
        if word == "--":
            words += [word, *rest]
        elif word == "@":
            files.append(Path(_next(rest, word)))
        elif word.startswith("@"):
            files.append(Path(word[1:]))
        elif _sets_value(word):
            name, equals, value = word.partition("=")
            flags.append((name[2:], value if equals else _next(rest, name)))
        else:
            words.append(word)
    return SplitLine(tuple(words), tuple(files), tuple(flags))


def _sets_value(word: str) -> bool:
    name = word.partition("=")[0]
    return name in _ROOT_FLAGS or (name.startswith("--") and "." in name)


def _next(rest: Iterator[str], flag: str) -> str:
    value = next(rest, None)
    if value is None or value.startswith("--"):
        wanted = "a file" if flag == "@" else "a value"
        raise ConfigError(f"{flag} needs {wanted} after it")
    return value
