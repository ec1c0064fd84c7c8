"""From the name of a selector to the selector of a set."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from explorer_mq import plugins
from explorer_mq.tasksets.protocol import Selector, Source
from explorer_mq.tasksets.selectors.difficulty import DifficultyBased
from explorer_mq.tasksets.selectors.easy2hard import OfflineEasy2Hard
from explorer_mq.tasksets.selectors.fixed import RandomRows, Sequential, Shuffle
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq_schemas.errors import ConfigError

GROUP = "explorer_mq.selectors"

BUILT_IN: dict[str, Callable[..., Selector]] = {
    "sequential": Sequential,
    "shuffle": Shuffle,
    "random": RandomRows,
    "offline_easy2hard": OfflineEasy2Hard,
    "difficulty_based": DifficultyBased,
}


def open_selector(settings: TasksetSettings, source: Source) -> Selector:
    """The selector of a set, at the start of its rows and with nothing learned.

    Raises:
        ConfigError: there is no such selector, or it refuses its arguments or the set's rows.
    """
    name = settings.selector
    factory = BUILT_IN.get(name) or _load(settings)
    try:
        return factory(source, seed=settings.seed, args=settings.selector_args)
    except Exception as error:  # custom ones may raise anything
        reason = (
            str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        )
        raise ConfigError(f"taskset {settings.name!r}, selector {name!r}: {reason}") from error


def _load(settings: TasksetSettings) -> Any:
    name = settings.selector
    known = [*BUILT_IN, *plugins.names(GROUP)]
    if ":" not in name and name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"taskset {settings.name!r}: no selector {name!r}{hint}; there are "
            f"{', '.join(known)}; or write module:attr or path/file.py:attr"
        )
    return plugins.load(name, GROUP)
