"""User code by name: loaded off the event loop, called the way it wants to be called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from explorer_mq.plugins import load
from explorer_mq_workers.threads import in_thread, in_thread_loop

_load = functools.cache(load)
"""Reading the installed distributions takes milliseconds; a name never changes its meaning."""


async def load_code(name: str, group: str) -> Any:
    """What ``name`` stands for; its module is imported in a thread, which may take seconds.

    Raises:
        ConfigError: there is no such code, or importing it failed.
    """
    return await in_thread(lambda: _load(name, group), name=f"import {name}")


async def call(function: Callable[[], Any], *, name: str, own_loop: bool = False) -> Any:
    """What ``function`` yields: a coroutine function is awaited, any other runs in a thread.

    Args:
        function: takes no arguments; an awaitable that a plain function returns is awaited here.
        name: of the thread.
        own_loop: a coroutine function runs on an event loop in a thread of its own too.
    """
    if not is_async(function):
        found = await in_thread(function, name=name)
        return await found if inspect.isawaitable(found) else found
    if own_loop:
        return await in_thread_loop(function, name=name)
    return await function()


def is_async(function: Any) -> bool:
    """Whether calling ``function`` gives a coroutine; sees through partials and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is wanted
    )
