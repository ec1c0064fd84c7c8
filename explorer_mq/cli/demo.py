"""``demo``: a tiny model learns a toy task through the real parts."""

from __future__ import annotations

import argparse

from explorer_mq.cli.command import Command, Invocation


def _demo(invocation: Invocation) -> int:
    from explorer_mq.demo.run import run_demo
    from explorer_mq.logs import configure_logging

    configure_logging(invocation.settings.log)
    return run_demo(invocation.settings, json_output=invocation.options.json)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, last line")


COMMANDS = (
    Command(
        name="demo",
        summary="watch a tiny model learn, all parts real, on this host",
        run=_demo,
        sections=("demo", "server", "worker", "scheduler", "log"),
        arguments=_arguments,
    ),
)
