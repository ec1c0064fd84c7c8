"""Getting a call through, however long the server is away or refuses it for want of room."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from explorer_mq.bus.connection import Bus, JetStreamError, NoResponders
from explorer_mq_schemas.errors import BusUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class Patience:
    """Repeats calls until the server has done what they ask; they must bear being repeated.

    It says once that a kind of call fails, once more when the cause changes, and once when it works
    again, however many calls wait.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._causes: dict[str, str] = {}

    async def until_done(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """What ``call()`` returns once it succeeds; ``what`` names its kind in the log.

        Only an absent server and refusals of JetStream (a full disk, a stream without leader) are
        waited for; every other error passes.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            while not self._bus.is_connected:
                await self._bus.wait_reconnect(_LONGEST_PAUSE_S)
            try:
                found = await call()
            except (BusUnavailable, NoResponders, JetStreamError) as error:
                self._note(what, error)
            else:
                if self._causes.pop(what, None) is not None:
                    logger.info("%s: works again", what)
                return found
            await self._bus.wait_reconnect(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _note(self, what: str, error: Exception) -> None:
        cause = f"{type(error).__name__} {getattr(error, 'err_code', '')}"
        if self._causes.get(what) != cause:
            self._causes[what] = cause
            logger.warning("%s: %s; it is repeated until it works", what, error)
