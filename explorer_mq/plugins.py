"""Code named in settings and tasks: ``module:attr``, ``path/file.py:attr`` or an entry point."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from explorer_mq_schemas.errors import ConfigError

_FILE_IMPORTS = threading.RLock()
"""Like the import system's own lock: nobody sees a file that is half imported."""


def load(name: str, group: str) -> Any:
    """The object that ``name`` stands for.

    Args:
        name: ``package.module:attr`` (``attr`` may be dotted), ``path/file.py:attr``, or the name
            of an entry point.
        group: entry-point group: ``explorer_mq.workflows``, ``.rewards`` or ``.engines``.

    Raises:
        ConfigError: there is no such module, file, attribute or entry point, or importing it
            failed; the message names the nearest one there is.
    """
    target, colon, attribute = name.rpartition(":")
    if not colon:
        return _load_entry_point(name, group)
    if not target or not attribute:
        raise ConfigError(f"{name!r}: write module:attr, path/file.py:attr or an entry point")
    module = _import_file(Path(target)) if target.endswith(".py") else _import_module(target)
    return _attribute(module, attribute, target)


def names(group: str) -> tuple[str, ...]:
    """Names of the installed entry points of ``group``, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def _load_entry_point(name: str, group: str) -> Any:
    for point in entry_points(group=group, name=name):
        return _attribute(_import_module(point.module), point.attr, point.module)
    known = names(group)
    raise ConfigError(
        f"no plug-in {name!r} in group {group}{_hint(name, known)}; "
        f"installed: {', '.join(known) or 'none'}; or write module:attr or path/file.py:attr"
    )


def _import_module(target: str) -> ModuleType:
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{target}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"no module {error.name!r} for {target!r}; searched {_searched()}; "
                "install it, or set PYTHONPATH"
            ) from error
        raise _failed(f"module {target!r}", error) from error
    except Exception as error:  # a plug-in's own code may raise anything while it is imported
        raise _failed(f"module {target!r}", error) from error


def _import_file(file: Path) -> ModuleType:
    """Import a file once per path, so that its classes keep their identity."""
    path = file.expanduser().resolve()
    if not path.is_file():
        nearby = [other.name for other in path.parent.glob("*.py")]
        raise ConfigError(f"no file {path}{_hint(path.name, nearby)}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    module_name = f"explorer_mq_file_{digest}_{path.stem}"
    with _FILE_IMPORTS:
        return sys.modules.get(module_name) or _run_file(path, module_name)


def _run_file(path: Path, module_name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a plug-in's own code may raise anything while it is imported
        del sys.modules[module_name]
        raise _failed(f"file {path}", error) from error
    return module


def _attribute(module: ModuleType, dotted: str, target: str) -> Any:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ConfigError(f"{target!r} has no attribute {dotted!r}{_hint(part, public)}")
        found = getattr(found, part)
    return found


def _searched() -> str:
    """The import path as users know it: their own directories one by one."""
    installed = (sys.prefix, sys.base_prefix)
    own = [path or "." for path in sys.path if not path.startswith(installed)]
    return ", ".join([*dict.fromkeys(own), "the installed packages"])


def _failed(what: str, error: Exception) -> ConfigError:
    return ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}")


def _hint(wanted: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wanted, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
