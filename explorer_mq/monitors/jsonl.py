"""Metrics as JSON lines: ``metrics.jsonl`` and ``tables.jsonl``, the one monitor there always is."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from explorer_mq.monitors.rows import RowFile

METRICS = "metrics"
"""The kind of a row unless it is said; rows of one step are told apart by it."""


class JsonlMonitor:
    """One object a line with ``kind``, ``step``, ``logged_at`` (seconds since 1970) and the values.

    A second row of a kind and step is not written, not even by a later process: a resumed run that
    repeats a step changes nothing. NaN and infinities are null, as JSON has none.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics = RowFile(folder / "metrics.jsonl")
        self.tables = RowFile(folder / "tables.jsonl")

    def log(self, data: Mapping[str, float], step: int, *, kind: str = METRICS) -> None:
        """Append a row.

        Raises:
            OSError: not now; the row waits for the next call or the close.
        """
        self.metrics.append((kind, step), _line(data, kind, step))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Append a table as one row; cells that are not JSON become text.

        Raises:
            OSError: not now; the table waits for the next call or the close.
        """
        content = {"columns": list(columns), "rows": [list(row) for row in rows]}
        self.tables.append((name, step), _line(content, name, step))

    @property
    def waiting(self) -> int:
        """Rows and tables that could not be written yet."""
        return self.metrics.waiting + self.tables.waiting

    @property
    def given_up(self) -> int:
        """Rows and tables that will not be written, as too many waited."""
        return self.metrics.given_up + self.tables.given_up

    def close(self) -> None:
        """Write what waits and close the files.

        Raises:
            OSError: not all could be written.
        """
        try:
            self.metrics.close()
        finally:
            self.tables.close()


def _line(content: Mapping[str, Any], kind: str, step: int) -> bytes:
    own = {"kind": kind, "step": step, "logged_at": round(time.time(), 3)}
    row = own | {key: value for key, value in content.items() if key not in own}
    try:
        return orjson.dumps(row, default=str)
    except orjson.JSONEncodeError:  # lone surrogates and huge integers, which models do write
        return json.dumps(row, default=str).encode()
