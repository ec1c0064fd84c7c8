"""What a command is, and what it gets when it runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from explorer_mq_schemas.errors import ConfigError

if TYPE_CHECKING:
    from explorer_mq.settings import Settings

SettingFlags = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Invocation:
    """One call: the command's own options, and where its settings come from."""

    options: argparse.Namespace
    files: tuple[Path, ...] = ()
    flags: SettingFlags = ()

    @cached_property
    def settings(self) -> Settings:
        """The checked settings.

        Raises:
            ConfigError: they are not valid.
        """
        from explorer_mq.settings import load_settings

        return load_settings(self.files, self.flags, os.environ)


def no_arguments(_: argparse.ArgumentParser) -> None:
    """For commands without options of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A leaf of the command tree.

    ``name`` has the words of the command line, ``sections`` the settings it reads besides ``run``
    (the name); the function ``run`` does the work and returns the exit code.
    """

    name: str
    summary: str
    run: Callable[[Invocation], int]
    sections: tuple[str, ...] = ()
    arguments: Callable[[argparse.ArgumentParser], None] = field(default=no_arguments)


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are errors like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage and leaving the program."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``, which every command that reads has."""
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
