"""Child processes that are killed, stopped and restarted; every exit is recorded with its reason."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from explorer_mq.steps import VARIABLE

_TAIL_BYTES = 4096
_TAIL_LINES = 6
_BRIEF_S = 1.0
_PAUSE_S = 0.3
_UNREACHABLE = 3


class Reason(StrEnum):
    """Why a child ended."""

    KILLED = "killed"
    AT_STEP = "at_step"
    FENCED = "fenced"
    UNREACHABLE = "unreachable"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one child: how, why, its last log lines; ``armed`` is the step it was to die at."""

    name: str
    code: int
    reason: Reason
    armed: str
    words: str


class Child:
    """One named child, started again as soon as it has ended.

    Use it from the main thread: the kernel ends a child when the thread that started it ends.

    Args:
        name: for logs and reports.
        arguments: of this Python, after ``-m``.
        log: file that takes its output.
        on_exit: hears of every exit, before the restart.
        on_line: takes the lines of its standard output.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        on_exit: Callable[[Exit], None],
        on_line: Callable[[bytes], None] | None = None,
    ) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._log = log
        self._on_exit = on_exit
        self._on_line = on_line
        self._child: asyncio.subprocess.Process | None = None
        self._stopped = False
        self._killed = False
        self._next_step = ""
        self._armed = ""
        self._offset = 0

    async def run(self) -> None:
        """Keep it alive until this is cancelled; then it is killed."""
        never = asyncio.Event()
        try:
            while True:
                started = time.monotonic()
                self._offset = self._log.stat().st_size if self._log.exists() else 0
                child = await self._spawn()
                if child.stdout is not None and self._on_line is not None:
                    while line := await child.stdout.readline():
                        self._on_line(line)
                code = await child.wait()
                self._child = None
                self._on_exit(self._exit(code))
                if time.monotonic() - started < _BRIEF_S and not self._killed:
                    try:
                        async with asyncio.timeout(_PAUSE_S):
                            await never.wait()
                    except TimeoutError:
                        continue
        finally:
            if self._child is not None and self._child.returncode is None:
                self._child.kill()
                await self._child.wait()

    def has_logged(self, text: bytes) -> bool:
        """The present child, which is alive, has logged ``text``."""
        if self._child is None:
            return False
        with self._log.open("rb") as file:
            file.seek(self._offset)
            return text in file.read()

    def kill(self) -> bool:
        """Kill -9; False when it was dead already."""
        if self._child is None or self._child.returncode is not None:
            return False
        self._killed = True
        self._child.kill()
        return True

    def arm(self, step: str) -> bool:
        """Kill it and let its successor kill itself at ``step``."""
        self._next_step = step
        return self.kill()

    def stop(self) -> bool:
        """SIGSTOP; False when it is dead or stopped already."""
        if self._child is None or self._stopped:
            return False
        self._child.send_signal(signal.SIGSTOP)
        self._stopped = True
        return True

    def resume(self) -> None:
        """SIGCONT, if it is stopped."""
        if self._child is not None and self._stopped:
            self._child.send_signal(signal.SIGCONT)
        self._stopped = False

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._armed, self._next_step = self._next_step, ""
        self._killed = self._stopped = False
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self._arguments,
                env=_environment(self._armed),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log if self._on_line is None else asyncio.subprocess.PIPE,
                stderr=log,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        return self._child

    def _exit(self, code: int) -> Exit:
        words = tail(self._log, self._offset)
        if self._killed:
            reason = Reason.KILLED
        elif self._armed and code == -signal.SIGKILL:
            reason = Reason.AT_STEP
        elif code == 1 and "lost leadership" in words:
            reason = Reason.FENCED
        elif code == _UNREACHABLE:
            reason = Reason.UNREACHABLE
        else:
            reason = Reason.UNEXPECTED
        return Exit(self.name, code, reason, self._armed, words)


def tail(log: Path, offset: int = 0) -> str:
    """The last lines of ``log`` after ``offset``, on one line."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(offset, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return " | ".join(lines[-_TAIL_LINES:])


def _environment(step: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return {**kept, VARIABLE: step} if step else kept


def _die_with_parent() -> None:
    """PR_SET_PDEATHSIG: none of them outlives us."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
