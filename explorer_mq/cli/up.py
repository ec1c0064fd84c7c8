"""``up``: everything on one host."""

from __future__ import annotations

from explorer_mq.cli.command import Command, Invocation


def _up(invocation: Invocation) -> int:
    from explorer_mq.logs import configure_logging
    from explorer_mq.up import run_up

    configure_logging(invocation.settings.log)
    return run_up(invocation.settings)


COMMANDS = (
    Command(
        name="up",
        summary="run nats-server, coordinator and workers on this host",
        run=_up,
        sections=("server", "nats", "streams", "scheduler", "worker", "up", "log"),
    ),
)
