"""Code by name: ``module:attr``, ``path/to/file.py:attr``, or the name of an entry point."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from explorer_mq_schemas.errors import ConfigError


def load(name: str, group: str) -> Any:
    """The object that ``name`` stands for; ``group`` is e.g. ``workflows`` or ``rewards``.

    Raises:
        ConfigError: there is no such module, attribute or entry point.
    """
    if ":" in name:
        return _load_attribute(name, group)
    points = entry_points(group=f"explorer_mq.{group}")
    if name in points.names:
        return points[name].load()
    near = difflib.get_close_matches(name, points.names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"{group[:-1]} {name!r} is neither module:attr nor one of {', '.join(sorted(points.names))}"
        f"{hint}"
    )


def _load_attribute(name: str, group: str) -> Any:
    source, _, attribute = name.rpartition(":")
    try:
        module = (
            _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
        )
    except Exception as error:
        raise ConfigError(
            f"{group[:-1]} {name!r}: {source} cannot be imported "
            f"({type(error).__name__}: {error}); install it where the worker runs"
        ) from error
    try:
        found = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ConfigError(
            f"{group[:-1]} {name!r}: {source} has no attribute {attribute!r}"
        ) from error
    return found


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
