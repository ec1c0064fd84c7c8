"""``explorer-mq up``: NATS, the coordinator and workers on one host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.children import Children
from explorer_mq.running import run_until_signal
from explorer_mq.settings import Settings

logger = logging.getLogger(__name__)


def embedded_server(settings: Settings) -> EmbeddedServer:
    """The server that the settings describe, not started."""
    server = settings.server
    return EmbeddedServer(
        server.store_dir,
        run=settings.run,
        host=server.host,
        port=server.port,
        max_payload_bytes=server.max_payload_bytes,
        max_store_bytes=server.max_store_bytes,
        durability=server.durability,
    )


def run_up(
    settings: Settings, files: Sequence[Path] = (), overrides: Sequence[tuple[str, str]] = ()
) -> int:
    """Serve until SIGTERM or SIGINT; ends when one of the processes does."""
    arguments = [text for path in files for text in ("@", str(path))]
    for key, value in overrides:
        arguments += [f"--{key}", value]
    with embedded_server(settings) as server:
        arguments += ["--nats.url", server.url]
        return run_until_signal(lambda stop: _serve(settings, arguments, stop))


async def _serve(settings: Settings, arguments: list[str], stop: asyncio.Event) -> None:
    async with Children(settings.server.store_dir / "logs") as children:
        await children.start("coordinator", ["explorer_mq", "coordinator", *arguments])
        for number in range(settings.up.workers):
            await children.start(f"worker-{number}", ["explorer_mq", "worker", *arguments])
        logger.info("up: run=%s, logs in %s/logs", settings.run, settings.server.store_dir)
        stopped = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(children.first_exit())
        await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
        failure = ended.result() if ended.done() else None
        for task in (stopped, ended):
            task.cancel()
        await asyncio.gather(stopped, ended, return_exceptions=True)
        if failure is not None:
            raise failure
