"""Failures of one monitor: all counted, each cause logged once."""

from __future__ import annotations

import logging
import threading
from collections import Counter

_LOG = logging.getLogger(__name__)

Cause = tuple[str, int | None, str]


class Faults:
    """Counts what went wrong with a monitor; may be used from several threads."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._lock = threading.Lock()
        self._causes: Counter[Cause] = Counter()
        self._lost: Counter[str] = Counter()

    @property
    def errors(self) -> int:
        """Failed calls so far."""
        with self._lock:
            return self._causes.total()

    @property
    def lost(self) -> int:
        """Rows and single values that never reached the monitor."""
        with self._lock:
            return self._lost.total()

    def note(self, error: BaseException, doing: str) -> None:
        """Count a failure; log it when nothing like it was logged before."""
        cause = _cause(error)
        with self._lock:
            self._causes[cause] += 1
            is_first = self._causes[cause] == 1
        if is_first:
            text = str(error).strip() or type(error).__name__
            _LOG.warning(
                "monitor %s: %s failed: %s: %s; the run goes on, more of this is only counted",
                *(self._who, doing, type(error).__name__, text),
            )

    def lose(self, why: str, rows: int = 1) -> None:
        """Count rows that are given up; log each reason once, unless it is ""."""
        with self._lock:
            is_first = not self._lost[why]
            self._lost[why] += rows
        if is_first and rows and why:
            _LOG.warning("monitor %s: something is left out: %s", self._who, why)

    def summarize(self) -> None:
        """Log the totals, if they say more than what was logged before."""
        with self._lock:
            told = len(self._causes) + len(self._lost)
            errors, lost = self._causes.total(), self._lost.total()
        if errors + lost > told:
            _LOG.warning(
                "monitor %s: in all, %d calls failed and %d rows or values were left out",
                *(self._who, errors, lost),
            )


def _cause(error: BaseException) -> Cause:
    """Same type at the same line; messages hold times and ids, so they do not count."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else str(error)
    return type(error).__name__, error.errno if isinstance(error, OSError) else None, where
