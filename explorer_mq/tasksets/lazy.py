"""Optional packages, imported when a set needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from explorer_mq_schemas.errors import ConfigError


def needed(module: str, what: str) -> Any:
    """The module, which only extra ``tasksets`` installs.

    Raises:
        ConfigError: it is not installed; says who needs it and how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs {module.partition('.')[0]}: pip install 'explorer-mq[tasksets]' ({error})"
        ) from error
