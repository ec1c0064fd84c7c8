"""A monitor's own queue and thread: whatever it does, the run does not wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from explorer_mq.monitors.faults import Faults
from explorer_mq.monitors.protocol import Monitor
from explorer_mq_schemas.errors import ConfigError

_LOG = logging.getLogger(__name__)

Call = Callable[[Monitor], None]

DEFAULT_SIZE = 1000
"""Rows that wait for a slow monitor: hours of steps, a few megabytes."""

DEFAULT_PATIENCE = 5
"""Failures in a row after which a monitor is switched off: more than a network's hiccup."""


class Lane:
    """Feeds one monitor from a daemon thread.

    Args:
        name: what the monitor is called in messages.
        opening: opens it; called in the thread, again with the next row when it fails.
        size: calls that may wait; further ones are left out.
        patience: failures in a row after which it is switched off for good.
    """

    def __init__(
        self,
        name: str,
        opening: Callable[[], Monitor],
        *,
        size: int = DEFAULT_SIZE,
        patience: int = DEFAULT_PATIENCE,
    ) -> None:
        self.name = name
        self.faults = Faults(name)
        self._opening = opening
        self._size = size
        self._patience = patience
        self._changed = threading.Condition()
        self._calls: deque[Call] = deque()
        self._is_closing = False
        self._is_off = False
        self._monitor: Monitor | None = None
        self._thread = threading.Thread(target=self._work, name=f"monitor-{name}", daemon=True)
        self._thread.start()

    @property
    def is_off(self) -> bool:
        """It failed too often and gets nothing more."""
        return self._is_off

    def put(self, call: Call) -> None:
        """Have the thread make ``call``; returns at once and never raises."""
        with self._changed:
            if self._is_off:
                why = ""  # the switching off was logged
            elif self._is_closing:
                why = "it is closed"
            elif len(self._calls) >= self._size:
                why = f"it does not keep up and {self._size} wait already"
            else:
                self._calls.append(call)
                self._changed.notify()
                return
        self.faults.lose(why)

    def begin_close(self) -> None:
        """Let the thread make the calls that wait, close the monitor and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def join(self, until: float) -> bool:
        """Wait for that until ``until`` (monotonic); False when it was left behind instead."""
        self._thread.join(max(0.0, until - time.monotonic()))
        is_done = not self._thread.is_alive()
        if not is_done:
            with self._changed:
                left = len(self._calls)
                self._calls.clear()
            _LOG.warning("monitor %s: did not finish in time and is left behind", self.name)
            self.faults.lose("it did not finish in time", left)
        self.faults.summarize()
        return is_done

    def _work(self) -> None:
        in_a_row = 0
        while (call := self._next()) is not None:
            doing = "opening" if self._monitor is None else "logging"
            try:
                if self._monitor is None:
                    self._monitor = self._opening()
                doing = "logging"
                call(self._monitor)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - libraries raise anything
                self.faults.note(error, doing)
                in_a_row += 1
                if in_a_row >= self._patience or isinstance(error, ConfigError):
                    self._switch_off(in_a_row)
                    break
            else:
                in_a_row = 0
        self._close_monitor()

    def _next(self) -> Call | None:
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._is_closing)
            return self._calls.popleft() if self._calls else None

    def _switch_off(self, failures: int) -> None:
        with self._changed:
            self._is_off = True
            left = len(self._calls)
            self._calls.clear()
        self.faults.lose("", left)
        _LOG.warning("monitor %s: switched off after %d failures in a row", self.name, failures)

    def _close_monitor(self) -> None:
        if self._monitor is None:
            return
        try:
            self._monitor.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            self.faults.note(error, "closing")
