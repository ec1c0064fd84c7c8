"""``run reset``: start a run over, on purpose."""

from __future__ import annotations

import argparse

from explorer_mq.cli.ask import connected, run_async
from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_fields, print_json
from explorer_mq_schemas.errors import InvalidRequest


def _reset(invocation: Invocation) -> int:
    removed = run_async(invocation, _remove(invocation))
    shown = {"run": invocation.settings.run, "removed messages": removed}
    if invocation.options.json:
        print_json({name.replace(" ", "_"): value for name, value in shown.items()})
    else:
        print_fields(shown)
    return 0


async def _remove(invocation: Invocation) -> int:
    from explorer_mq.bus.state import RunState
    from explorer_mq.bus.topology import count_messages, remove

    run = invocation.settings.run
    async with connected(invocation.settings) as bus:
        count = await count_messages(bus)
        if not invocation.options.yes:
            raise InvalidRequest(
                f"run {run} has {count} messages: batches, results, training batches, weights; "
                "nothing was removed. Say --yes to remove all of it"
            )
        if count and await RunState(bus).get("leader"):
            raise InvalidRequest(f"run {run} is led by a coordinator; stop that first")
        await remove(bus)
        return count


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="really remove all that the run holds")
    json_option(parser)


COMMANDS = (
    Command(
        name="run reset",
        summary="remove all streams of a run, so that it starts over",
        run=_reset,
        sections=("nats",),
        arguments=_arguments,
    ),
)
