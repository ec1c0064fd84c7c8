"""Child processes of one host: started, logged to files, watched, stopped; none outlives us."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from explorer_mq_schemas.errors import ExplorerError, TransientError

_TAIL_LINES = 5


class Children:
    """Named child processes running ``python -m ...``.

    Start them from the main thread: the kernel ends a child when the thread that started it ends.
    """

    def __init__(self, log_dir: Path, *, stop_s: float = 15.0) -> None:
        self._log_dir = log_dir
        self._stop_s = stop_s
        self._children: dict[str, asyncio.subprocess.Process] = {}
        log_dir.mkdir(parents=True, exist_ok=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(
        self, name: str, arguments: Sequence[str], *, pipe: bool = False
    ) -> asyncio.subprocess.Process:
        """Start ``python -m <arguments>``; with ``pipe`` its standard output is ours to read."""
        with self.log(name).open("wb") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipe else log,
                stderr=log,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        self._children[name] = child
        return child

    def log(self, name: str) -> Path:
        """Where the child's output goes."""
        return self._log_dir / f"{name}.log"

    async def first_exit(self) -> ExplorerError:
        """Wait until any child has ended, and say which, how and with which last words."""
        waits = {
            asyncio.create_task(child.wait(), name=name): name
            for name, child in self._children.items()
        }
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        name = waits[next(iter(done))]
        lines = self.log(name).read_text(errors="replace").splitlines()
        words = " | ".join(lines[-_TAIL_LINES:])
        code = self._children[name].returncode
        return TransientError(f"{name} ended with exit code {code}; {self.log(name)}: {words}")

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that do not end in time."""
        for child in self._children.values():
            if child.returncode is None:
                child.terminate()
        for child in self._children.values():
            try:
                async with asyncio.timeout(self._stop_s):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
        self._children.clear()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
