"""Entry point: finds the command, runs it, and is the one place that maps errors to exit codes.

0 done, 1 failed work, 2 wrong usage or settings, 3 NATS unreachable, 4 not found, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from explorer_mq import __version__
from explorer_mq.cli import tree
from explorer_mq.cli.arguments import split
from explorer_mq.cli.command import Invocation
from explorer_mq.cli.help import overview, parser_of
from explorer_mq_schemas.errors import ConfigError, ExplorerError

INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(line: Sequence[str] | None = None) -> int:
    """Run one command line (that of the process by default) and return its exit code."""
    words = list(sys.argv[1:] if line is None else line)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    try:
        return run(words)
    except ExplorerError as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"explorer-mq: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def run(line: Sequence[str]) -> int:
    """As :func:`main`, but errors are raised.

    Raises:
        ExplorerError: what the command raised; its ``exit_code`` is the process's.
    """
    parts = split(line)
    if not parts.words or parts.words[0] in ("--help", "-h", "help"):
        sys.stdout.write(overview(tree.GROUPS))
        return 0 if parts.words else ConfigError.exit_code
    if parts.words[0] == "--version":
        sys.stdout.write(f"explorer-mq {__version__}\n")
        return 0
    if _asks_for_group(parts.words):
        sys.stdout.write(overview([(parts.words[0], tree.under(parts.words[0]))]))
        return 0
    found = tree.find(parts.words)
    parser = parser_of(found.command)
    if {"--help", "-h"} & set(found.words):
        sys.stdout.write(parser.format_help())
        return 0
    options, unknown = parser.parse_known_args(found.words)
    if unknown:
        raise _unknown(unknown[0], parser.prog)
    _allow_imports_from_here()
    return found.command.run(Invocation(options, parts.files, parts.flags))


def _asks_for_group(words: Sequence[str]) -> bool:
    """``batch --help``: the first word alone is no command, but begins some."""
    is_group = words[0] not in tree.COMMANDS and bool(tree.under(words[0]))
    return is_group and len(words) > 1 and words[1] in ("--help", "-h")


def _unknown(word: str, program: str) -> ConfigError:
    """An option nobody knows may be a setting without its section."""
    hint = f"see `{program} --help`"
    if word.startswith("--"):
        from explorer_mq.settings import reference

        close = reference.nearest((word[2:].partition("=")[0].replace("-", "_"),))
        hint = f"did you mean --{close.replace('_', '-')}?" if close else hint
    return ConfigError(f"unknown option {word}; {hint}")


def _allow_imports_from_here() -> None:
    """Plug-ins beside the user are found as by ``python -m``, but never shadow a package."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path:
        sys.path.append(here)
