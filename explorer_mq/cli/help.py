"""Help texts: the command tree, and what one command takes. Settings are searched, not dumped."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from explorer_mq.cli.command import Command, Parser

_TOP = """\
usage: explorer-mq COMMAND [@ FILE.toml ...] [--section.field VALUE ...] [options]

Message-queue driven rollouts for reinforcement learning of language models.
"""
_BOTTOM = """\
Settings come from defaults < files left to right < EXPLORER_MQ_SECTION__FIELD < flags.
`COMMAND --help` names the sections a command reads, `config show SECTION` lists them.
--debug shows the traceback of an error, --version the version.
"""


def overview(groups: Iterable[tuple[str, Iterable[Command]]]) -> str:
    """All commands with their summaries."""
    lines = [_TOP]
    for title, commands in groups:
        lines.append(f"{title}:")
        lines += [f"  {command.name:<13} {command.summary}" for command in commands]
        lines.append("")
    return "\n".join([*lines, _BOTTOM])


def parser_of(command: Command) -> Parser:
    """The parser of a command's own options."""
    shown = ", ".join(("run", *command.sections))
    parser = Parser(
        prog=f"explorer-mq {command.name}",
        description=command.summary,
        epilog=f"settings read: {shown}\n"
        "`explorer-mq config show SECTION` lists them; set one with --section.field VALUE, or more "
        "with @ FILE.toml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return parser
