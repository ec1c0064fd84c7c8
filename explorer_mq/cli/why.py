"""``why``: what everything is waiting for, and the command that would change it."""

from __future__ import annotations

import sys
from typing import Any

from explorer_mq.cli.ask import ask
from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_json
from explorer_mq_schemas.errors import BusUnavailable, NotFound


def _why(invocation: Invocation) -> int:
    findings = _findings(invocation)
    for finding in findings:
        if invocation.options.json:
            print_json(finding)
        else:
            sys.stdout.write(f"{finding['cause']}: {finding['text']}\n  try: {finding['remedy']}\n")
    return 0


def _findings(invocation: Invocation) -> list[dict[str, Any]]:
    """The coordinator's word, or why there is none."""
    run = invocation.settings.run
    try:
        found: list[dict[str, Any]] = ask(invocation, "why")
    except BusUnavailable as error:
        remedy = "explorer-mq nats, or set nats.url; explorer-mq doctor checks the rest"
        return [{"cause": "server_unreachable", "text": str(error), "remedy": remedy}]
    except NotFound:
        return [
            {
                "cause": "no_coordinator",
                "text": f"no coordinator leads run {run}: workers go on with what is queued, but "
                "nothing is closed, retried or submitted",
                "remedy": f"explorer-mq coordinator --run {run}",
            }
        ]
    return found


COMMANDS = (
    Command(
        name="why",
        summary="what everything is waiting for, and what would help",
        run=_why,
        sections=("nats",),
        arguments=json_option,
    ),
)
