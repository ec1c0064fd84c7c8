"""Import of the tools' libraries, which are not installed unless asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from explorer_mq_schemas.errors import ConfigError


def library(name: str, *, extra: str) -> ModuleType:
    """The imported module ``name``; typed loosely, as it may be absent while types are checked.

    Raises:
        ConfigError: it is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise missing(name, extra=extra) from error


def is_installed(name: str) -> bool:
    """Whether the top-level module ``name`` could be imported; does not import it."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def missing(name: str, *, extra: str) -> ConfigError:
    """The error for a library that is not there."""
    return ConfigError(
        f"monitor {extra!r} needs the module {name!r}: pip install 'explorer-mq[{extra}]'"
    )
