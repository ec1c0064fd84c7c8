"""The command tree: every command by name, found from the words of a command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from explorer_mq.cli import (
    batch,
    chaos,
    config,
    coordinator,
    demo,
    doctor,
    nats,
    run,
    status,
    submit,
    up,
    why,
    worker,
)
from explorer_mq.cli.command import Command
from explorer_mq_schemas.errors import ConfigError

GROUPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    ("start", (*demo.COMMANDS, *up.COMMANDS, *nats.COMMANDS, *coordinator.COMMANDS, worker.RUN)),
    ("work", (*submit.COMMANDS, *batch.COMMANDS, *run.COMMANDS)),
    ("look", (*status.COMMANDS, *why.COMMANDS, worker.LS)),
    ("settings", (*doctor.COMMANDS, *chaos.COMMANDS, *config.COMMANDS)),
)
COMMANDS = {command.name: command for _, group in GROUPS for command in group}


@dataclass(frozen=True, slots=True)
class Found:
    """A command and the words that follow its name."""

    command: Command
    words: tuple[str, ...]


def find(words: Sequence[str]) -> Found:
    """The command that ``words`` begin with; two words win over one.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    for length in (2, 1):
        command = COMMANDS.get(" ".join(words[:length]))
        if command is not None:
            return Found(command, tuple(words[length:]))
    below = under(words[0])
    if below and (len(words) == 1 or words[1].startswith("-")):
        raise ConfigError(f"{words[0]} needs a command: {', '.join(c.name for c in below)}")
    wanted = " ".join(words[:2]) if below else words[0]
    close = difflib.get_close_matches(wanted, [*COMMANDS, *_first_words()], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "`explorer-mq --help` lists all"
    raise ConfigError(f"unknown command {wanted!r}; {hint}")


def under(word: str) -> tuple[Command, ...]:
    """The commands whose first word is ``word``."""
    return tuple(command for name, command in COMMANDS.items() if name.split()[0] == word)


def _first_words() -> set[str]:
    return {name.split()[0] for name in COMMANDS}
