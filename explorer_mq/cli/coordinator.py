"""``coordinator``: the one that owns the batches of a run."""

from __future__ import annotations

import argparse

from explorer_mq.cli.command import Command, Invocation


def _coordinator(invocation: Invocation) -> int:
    from explorer_mq.logs import configure_logging
    from explorer_mq.serving import run_coordinator

    configure_logging(invocation.settings.log)
    return run_coordinator(invocation.settings, standby=invocation.options.standby)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--standby",
        action="store_true",
        help="wait until the run's coordinator ends, then take over",
    )


COMMANDS = (
    Command(
        name="coordinator",
        summary="run the coordinator of a run; explores explorer.tasksets if there are any",
        run=_coordinator,
        sections=("nats", "streams", "scheduler", "explorer", "monitors", "log"),
        arguments=_arguments,
    ),
)
