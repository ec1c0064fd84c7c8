"""``status``: the run on one screen."""

from __future__ import annotations

from explorer_mq.cli.ask import ask
from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_fields, print_json


def _status(invocation: Invocation) -> int:
    fields = ask(invocation, "status")
    if invocation.options.json:
        print_json(fields)
    else:
        print_fields({name.replace("_", " "): value for name, value in fields.items()})
    return 0


COMMANDS = (
    Command(
        name="status",
        summary="batches by state, queue, workers, policy versions",
        run=_status,
        sections=("nats",),
        arguments=json_option,
    ),
)
