"""The run's nats-server: killed, stopped, short of room, always back on the same port and store."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.chaos.processes import Exit, Reason, tail

NO_ROOM_BYTES = 1 << 20
"""A store limit below what any run has stored: every further publish is refused."""


class Server:
    """One embedded server of this process.

    Start and restart block for the milliseconds the server needs, and need the main thread (see
    :class:`~explorer_mq.bus.embedded.EmbeddedServer`).
    """

    def __init__(self, store: Path, run: str, *, on_exit: Callable[[Exit], None]) -> None:
        self._store = store
        self._run = run
        self._on_exit = on_exit
        self._room: int | None = None
        self._stopped = False
        self._watched = -1
        self._inner = EmbeddedServer(store, run=run)

    @property
    def port(self) -> int:
        """The port it keeps for life."""
        return self._inner.port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self._inner.url

    def start(self) -> None:
        """Start it; from a running event loop."""
        self._inner.start()
        self._watch()

    def kill(self) -> None:
        """Kill -9 and start again at once."""
        self._forget()
        self._inner.kill()
        self._stopped = False
        self._inner.restart()
        self._watch()

    def limit(self, room_bytes: int | None) -> None:
        """Kill it and start it with another limit of its store; None is without limit."""
        self._forget()
        self._inner.kill()
        self._inner.stop()
        self._stopped = False
        self._inner = EmbeddedServer(
            self._store, run=self._run, port=self.port, max_store_bytes=room_bytes
        )
        self._inner.start()
        self._watch()

    def stop(self) -> bool:
        """SIGSTOP; False when it is stopped already."""
        if self._stopped:
            return False
        os.kill(self._inner.pid, signal.SIGSTOP)
        self._stopped = True
        return True

    def resume(self) -> None:
        """SIGCONT, if it is stopped."""
        if self._stopped:
            os.kill(self._inner.pid, signal.SIGCONT)
        self._stopped = False

    def close(self) -> None:
        """End it for good."""
        self.resume()
        self._forget()
        self._inner.stop()

    def _watch(self) -> None:
        """Hear of an end that nobody asked for."""
        self._watched = os.pidfd_open(self._inner.pid)
        asyncio.get_running_loop().add_reader(self._watched, self._ended)

    def _forget(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    def _ended(self) -> None:
        words = tail(self._store / "nats-server.log")
        self._on_exit(Exit("nats-server", -1, Reason.UNEXPECTED, "", words))
        self.kill()
