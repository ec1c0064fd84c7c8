"""Parquet: row groups are decoded when one of their rows is asked for."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from explorer_mq.tasksets.lazy import needed
from explorer_mq.tasksets.protocol import Defaults, Row
from explorer_mq_schemas.errors import ConfigError

_KEPT_BYTES = 256 << 20
"""Decoded row groups kept: a shuffled set comes back to each of them again and again."""


class ParquetSource:
    """One parquet file; needs pyarrow."""

    defaults = Defaults()

    def __init__(self, path: Path) -> None:
        self._path = path
        parquet = needed("pyarrow.parquet", str(path))
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        layout = self._file.metadata
        sizes = (layout.row_group(group).num_rows for group in range(layout.num_row_groups))
        self._starts: list[int] = list(accumulate(sizes, initial=0))
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows with these numbers; each of their row groups is decoded at most once."""
        asked: dict[int, list[int]] = {}
        for number in dict.fromkeys(numbers):
            asked.setdefault(bisect.bisect_right(self._starts, number) - 1, []).append(number)
        found: dict[int, Row] = {}
        for group, members in sorted(asked.items()):
            start = self._starts[group]
            table = self._group(group).take([number - start for number in members])
            found.update(zip(members, table.to_pylist(), strict=True))
        return [dict(found[number]) for number in numbers]

    def column(self, key: str) -> list[Any]:
        """The value of ``key`` in every row; only that column is decoded."""
        if key not in self._file.schema_arrow.names:
            return [None] * len(self)
        values: list[Any] = self._file.read(columns=[key])[key].to_pylist()
        return values

    def where(self, number: int) -> str:
        """File and row."""
        return f"{self._path} row {number}"

    def _group(self, group: int) -> Any:
        if group not in self._groups:
            try:
                self._groups[group] = self._file.read_row_group(group)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{self._path} row group {group} cannot be read: {error}"
                ) from error
        self._groups.move_to_end(group)
        table = self._groups[group]
        while len(self._groups) > 1 and self._kept_bytes() > _KEPT_BYTES:
            self._groups.popitem(last=False)
        return table

    def _kept_bytes(self) -> int:
        return sum(table.nbytes for table in self._groups.values())
