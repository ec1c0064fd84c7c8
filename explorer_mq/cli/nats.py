"""``nats``: the embedded nats-server in the foreground."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_json
from explorer_mq_schemas.errors import BusUnavailable

if TYPE_CHECKING:
    from explorer_mq.bus.embedded import EmbeddedServer

_INTERRUPTED = 130


def _nats(invocation: Invocation) -> int:
    from explorer_mq.bus.embedded import EmbeddedServer
    from explorer_mq.logs import configure_logging

    settings = invocation.settings
    configure_logging(settings.log)
    server = EmbeddedServer(
        settings.server.store_dir,
        run=settings.run,
        host=settings.server.host,
        port=settings.server.port,
        max_payload_bytes=settings.server.max_payload_bytes,
        max_store_bytes=settings.server.max_store_bytes,
        durability=settings.server.durability,
    )
    return asyncio.run(_serve(server, as_json=invocation.options.json))


async def _serve(server: EmbeddedServer, *, as_json: bool) -> int:
    """Run the server until a signal comes or it ends by itself.

    The server dies with the thread that starts it; ``asyncio.run`` keeps us on the main one.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int | None] = loop.create_future()

    def end(exit_code: int | None) -> None:
        if not ended.done():
            ended.set_result(exit_code)

    loop.add_signal_handler(signal.SIGTERM, end, 0)
    loop.add_signal_handler(signal.SIGINT, end, _INTERRUPTED)
    with server:
        _announce(server, as_json=as_json)
        alive = os.pidfd_open(server.pid)
        loop.add_reader(alive, end, None)
        try:
            exit_code = await ended
        finally:
            loop.remove_reader(alive)
            os.close(alive)
    if exit_code is None:
        raise BusUnavailable(
            f"nats-server ended by itself; its log is {server.store_dir / 'nats-server.log'}"
        )
    return exit_code


def _announce(server: EmbeddedServer, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": server.url, "pid": server.pid, "store_dir": str(server.store_dir)})
    else:
        sys.stdout.write(f"nats-server at {server.url}, store {server.store_dir}\n")
        sys.stdout.flush()


COMMANDS = (
    Command(
        name="nats",
        summary="run the embedded nats-server in the foreground",
        run=_nats,
        sections=("server", "log"),
        arguments=json_option,
    ),
)
