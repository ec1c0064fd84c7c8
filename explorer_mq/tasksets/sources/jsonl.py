"""JSON lines, read by byte offset: eight bytes a row are kept, not the rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from explorer_mq.tasksets.protocol import Defaults, Row
from explorer_mq_schemas.errors import ConfigError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonlSource:
    """One JSON object a line, UTF-8; blank lines are no rows.

    Opening it looks for line ends only. The file is opened for each read, and must not change.
    """

    defaults = Defaults()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = array("Q")
        self._bytes = 0
        with self._reading() as lines:
            for line in lines:
                if not line.isspace():
                    self._offsets.append(self._bytes)
                self._bytes += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows with these numbers; no other is parsed."""
        with self._reading() as lines:
            self._check_unchanged(lines)
            return [self._row(lines, number) for number in numbers]

    def column(self, key: str) -> list[Any]:
        """The value of ``key`` in every row; the file is read once through."""
        with self._reading() as lines:
            self._check_unchanged(lines)
            return [self._row(lines, number).get(key) for number in range(len(self))]

    def where(self, number: int) -> str:
        """File and line; the lines are counted now, for messages are rare and rows are many."""
        with self._reading() as lines:
            left = self._offsets[number]
            line = 1
            while left > 0 and (block := lines.read(min(left, 1 << 20))):
                line += block.count(b"\n")
                left -= len(block)
        return f"{self._path}:{line}"

    def _row(self, lines: BinaryIO, number: int) -> Row:
        lines.seek(self._offsets[number])
        try:
            row = orjson.loads(lines.readline().removeprefix(_BYTE_ORDER_MARK))
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{self.where(number)}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{self.where(number)}: a row must be a JSON object")
        return row

    def _check_unchanged(self, lines: BinaryIO) -> None:
        """Offsets into a file that was rewritten would point into the middle of rows."""
        size = lines.seek(0, 2)
        if size != self._bytes:
            raise ConfigError(
                f"{self._path} has changed since it was opened: {self._bytes} bytes then, "
                f"{size} now; start again, or put the old file back"
            )

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            with self._path.open("rb") as lines:
                yield lines
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from error
