"""The engine's child processes, watched by file descriptor: no polling, no race for a process id."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

_STORED_S = 0.05
"""Ample for a thread that only waits for the interpreter lock."""


class WatchedChild:
    """A running child of this process; :attr:`ended` resolves with how it ended, in words.

    Create it on the event loop that waits for it.
    """

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._descriptor = os.pidfd_open(process.pid)
        self.pid = process.pid
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._on_end)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if not self.ended.done():
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._process.join()
        if self._process.exitcode is None:  # a thread of vLLM's has fetched it, not yet stored it
            self._loop.call_later(_STORED_S, self._settle)
        else:
            self._settle()

    def _settle(self) -> None:
        self.ended.set_result(f"{self._process.name} (pid {self.pid}) {self._how()}")

    def _how(self) -> str:
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        hint = "; the kernel does this when memory runs out" if code == -signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{hint}"


async def end_all(children: Iterable[WatchedChild], *, grace_s: float) -> None:
    """Return when all have ended; those that take longer than ``grace_s`` are killed."""
    endings = {child.ended: child for child in children}
    if not endings:
        return
    _, late = await asyncio.wait(endings, timeout=grace_s)
    for ending in late:
        endings[ending].kill()
    if late:
        await asyncio.wait(late)
