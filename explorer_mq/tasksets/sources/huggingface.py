"""Hugging Face ``datasets`` in a local directory; rows stay on disk, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from explorer_mq.tasksets.lazy import needed
from explorer_mq.tasksets.protocol import Defaults, Row
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq_schemas.errors import ConfigError

_SAVED = ("state.json", "dataset_dict.json")
"""What ``save_to_disk`` leaves; any other directory is one of data files."""


class HuggingFaceSource:
    """What ``load_from_disk`` or ``load_dataset`` finds in a directory; needs datasets.

    ``subset`` is the configuration; without ``split`` the only split is taken, or ``train``;
    ``options`` are further arguments of either function.
    """

    defaults = Defaults()

    def __init__(self, settings: TasksetSettings, path: Path) -> None:
        self._name = settings.name
        self._path = path
        datasets = needed("datasets", f"taskset {settings.name!r} ({path})")
        try:
            found = _load(datasets, settings, path)
        except Exception as error:  # loading runs readers of many formats
            raise ConfigError(
                f"taskset {settings.name!r}: {path} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(found, dict):
            found = self._pick(found, settings.split)
        elif settings.split not in (None, str(found.split)):
            raise ConfigError(
                f"taskset {settings.name!r}: {path} holds split {found.split}, not {settings.split}"
            )
        self._rows = found.with_format(None)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows with these numbers."""
        columns = self._rows[list(numbers)]
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def column(self, key: str) -> list[Any]:
        """The value of ``key`` in every row; only that column is read."""
        if key not in self._rows.column_names:
            return [None] * len(self)
        return list(self._rows[key])

    def where(self, number: int) -> str:
        """Set, directory and row."""
        return f"taskset {self._name!r} ({self._path}) row {number}"

    def _pick(self, splits: dict[str, Any], split: str | None) -> Any:
        name = split or (next(iter(splits)) if len(splits) == 1 else "train")
        if name not in splits:
            raise ConfigError(
                f"taskset {self._name!r}: {self._path} has no split {name!r}; it has "
                f"{', '.join(splits)}: set split"
            )
        return splits[name]


def _load(datasets: Any, settings: TasksetSettings, path: Path) -> Any:
    if any((path / name).is_file() for name in _SAVED):
        if settings.subset is not None:
            raise ConfigError("a saved dataset has no subsets; drop the setting")
        return datasets.load_from_disk(str(path), **settings.options)
    return datasets.load_dataset(str(path), name=settings.subset, **settings.options)
