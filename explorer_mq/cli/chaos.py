"""``chaos``: kill a real run over and over, and prove that nothing is lost or doubled."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from explorer_mq.cli.command import Command, Invocation
from explorer_mq.cli.output import print_fields, print_json


def _chaos(invocation: Invocation) -> int:
    from explorer_mq.chaos.run import ChaosOptions, run_chaos
    from explorer_mq.logs import configure_logging

    configure_logging(invocation.settings.log)
    # The harness loses its own connection with every kill of the server: no news.
    logging.getLogger("explorer_mq.bus").setLevel(logging.ERROR)
    given = vars(invocation.options).copy()
    as_json = given.pop("json")
    report = run_chaos(ChaosOptions(**given))
    if as_json:
        print_json(report.fields())
    else:
        print_fields(report.fields())
    sys.stdout.flush()
    return 0 if report.is_good else 1


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="shortest time of faults; default 60")
    add("--seed", type=int, default=1, help="decides faults and tasks; default 1")
    add("--kills", type=int, default=0, help="go on until so many kills were made")
    add("--batches", type=int, default=0, help="go on until so many batches were closed")
    add("--slices", type=int, default=0, help="go on until so many slices were answered")
    add("--interval-s", type=float, default=1.5, help="mean time between faults; default 1.5")
    add("--lanes", type=int, default=4, help="batches in flight; default 4")
    add("--standby", action="store_true", help="run a second coordinator as standby")
    add("--keep", type=Path, help="directory to keep logs and streams in, also after success")
    add("--json", action="store_true", help="print the report as one line of JSON")


COMMANDS = (
    Command(
        name="chaos",
        summary="kill -9 everything over and over, and prove that nothing is lost or doubled",
        run=_chaos,
        sections=("log",),
        arguments=_arguments,
    ),
)
