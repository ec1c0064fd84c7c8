"""An append-only file of JSON lines in which every (kind, step) occurs once.

Guarantees, against ``kill -9`` at any point: the next process goes on where the file ends, a torn
last line is removed before anything is appended, and a row that made it into the file is not written
again. Several processes may append to one file: each write happens under a lock after the others'
rows were taken in. Rows survive the death of the process, not of the machine: nothing is synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

RowKey = tuple[str, int]

_CHUNK_BYTES = 1 << 20
_BACKLOG = 1000
_NO_LOCKS = frozenset((errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP))


class RowFile:
    """Appends rows to ``path``; opened at the first row, so a bad path fails there.

    Rows that could not be written (full disk, lock held) wait for a later call; past a bound the
    oldest is given up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given_up = 0
        self._fd: int | None = None
        self._file: tuple[int, int] | None = None
        self._seen: set[RowKey] = set()
        self._end = 0
        self._waiting: deque[tuple[RowKey, bytes]] = deque()

    def append(self, key: RowKey, line: bytes) -> None:
        """Write ``line``, one JSON object whose kind and step are ``key``, unless it is there.

        Raises:
            OSError: it could not be written now; it waits for the next call.
        """
        if key not in self._seen and all(key != other for other, _ in self._waiting):
            self._waiting.append((key, line + b"\n"))
            if len(self._waiting) > _BACKLOG:
                self._waiting.popleft()
                self.given_up += 1
        self.flush()

    @property
    def waiting(self) -> int:
        """Rows that are not in the file yet."""
        return len(self._waiting)

    def flush(self) -> None:
        """Write the rows that wait.

        Raises:
            OSError: not all could be written.
        """
        if not self._waiting:
            return
        try:
            descriptor = self._opened()
            with _locked(descriptor, self.path):
                self._catch_up(descriptor)
                while self._waiting:
                    self._write(descriptor, *self._waiting[0])
                    self._waiting.popleft()
        except OSError:
            self._release()  # the next try finds a file that was replaced, or a mount that is back
            raise

    def close(self) -> None:
        """Write the rows that wait and close the file.

        Raises:
            OSError: not all could be written.
        """
        try:
            self.flush()
        finally:
            self._release()

    def _opened(self) -> int:
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o644)
            status = os.fstat(self._fd)
            if self._file != (status.st_dev, status.st_ino):
                self._file = (status.st_dev, status.st_ino)
                self._forget()
        return self._fd

    def _release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _forget(self) -> None:
        self._seen.clear()
        self._end = 0

    def _write(self, descriptor: int, key: RowKey, line: bytes) -> None:
        if key in self._seen:
            return
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, self._end)
            raise OSError(errno.ENOSPC, f"only part of a row fits into {self.path}")
        self._end += written
        self._seen.add(key)

    def _catch_up(self, descriptor: int) -> None:
        """Take in what others, or this run's earlier process, appended; repair a torn end."""
        size = os.fstat(descriptor).st_size
        if size == self._end:
            return
        if size < self._end:
            self._forget()
        rest = b""
        while chunk := os.pread(descriptor, _CHUNK_BYTES, self._end + len(rest)):
            *lines, rest = (rest + chunk).split(b"\n")
            self._seen.update(key for line in lines if (key := _key_of(line)))
            self._end += sum(map(len, lines)) + len(lines)
        if not rest:
            return
        key = _key_of(rest)
        if key is None:
            os.ftruncate(descriptor, self._end)
            return
        self._end += len(rest) + os.write(descriptor, b"\n")  # all but its line break was written
        self._seen.add(key)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``path`` in file order; safe while it is written.

    A last line without its line break is still being written, or torn: it is no row.
    """
    with path.open("rb") as lines:
        for line in lines:
            row = _parsed(line) if line.endswith(b"\n") else None
            if row is not None:
                yield row


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _key_of(line: bytes) -> RowKey | None:
    row = _parsed(line) or {}
    kind, step = row.get("kind"), row.get("step")
    return (kind, step) if isinstance(kind, str) and isinstance(step, int) else None


@contextmanager
def _locked(descriptor: int, path: Path) -> Iterator[None]:
    has_locks = _lock(descriptor, path)
    try:
        yield
    finally:
        if has_locks:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock(descriptor: int, path: Path) -> bool:
    """Take the lock; False on a file system without locks, where one writer is all there may be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TimeoutError(f"another process holds {path}; its rows wait") from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
