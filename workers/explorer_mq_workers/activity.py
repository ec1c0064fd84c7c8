"""What an attempt is doing: calls, tokens and noted states of all its runs, and when the last came."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from explorer_mq_schemas.beats import StateValue

if TYPE_CHECKING:
    from explorer_mq_workers.engines.protocol import Engine
    from explorer_mq_workers.scope import RunScope

# Beats are small messages; a workflow may note what it likes.
_MOST_KEYS = 32
_MOST_CHARS = 200


class Activity:
    """Progress of one attempt.

    Tokens of a request in flight are looked at, not reported: whoever wants to know calls
    :meth:`look` before. An engine that cannot tell counts as making progress while it is asked.
    """

    def __init__(self, engine: Engine | None = None, *, workflow_id: str = "") -> None:
        self._engine = engine
        self._workflow_id = workflow_id
        self._scopes: list[RunScope] = []
        self._model_version: int | None = None
        self._begin_time: float | None = None
        self._terminate_time: float | None = None
        self._seen_tokens = 0
        self._progress_clock_s = self._clock_s()
        self.progress_at = time.time()
        """Unix time of the last progress that was noticed."""

    @property
    def calls(self) -> int:
        """Model calls made so far."""
        return sum(scope.calls for scope in self._scopes)

    @property
    def tokens(self) -> int:
        """Tokens sampled so far, those of unfinished answers included where the engine tells."""
        return sum(scope.tokens for scope in self._scopes) + (self._tokens_in_flight() or 0)

    @property
    def waiting(self) -> int:
        """Requests the engine has not answered yet."""
        return sum(len(scope.requests) for scope in self._scopes)

    @property
    def idle_s(self) -> float:
        """Seconds since the last progress; time in which the engine was paused does not count."""
        return self._clock_s() - self._progress_clock_s

    def begin(self, version: int) -> None:
        """The runs begin under policy ``version``."""
        self._model_version = version
        self._begin_time = time.time()
        self.mark()

    def finish(self) -> None:
        """The runs have ended."""
        self._terminate_time = time.time()

    def add(self, scope: RunScope) -> None:
        """Another run has begun."""
        self._scopes.append(scope)

    def mark(self) -> None:
        """Something happened: a call, an answer, a noted state. May be called from any thread."""
        self._progress_clock_s = self._clock_s()
        self.progress_at = time.time()

    def look(self) -> None:
        """Notice tokens sampled since the last look."""
        tokens = self._tokens_in_flight()
        if tokens is None or tokens != self._seen_tokens:
            self._seen_tokens = tokens or 0
            self.mark()

    def answered(self) -> None:
        """A request has ended; its tokens are in flight no more."""
        self._seen_tokens = self._tokens_in_flight() or 0
        self.mark()

    def abort(self) -> None:
        """End all runs: their requests are aborted, further ones refused."""
        for scope in self._scopes:
            scope.end()

    def state(self) -> dict[str, StateValue]:
        """What the workflow noted, with the reference's keys of a runner's state."""
        noted: dict[str, StateValue] = {}
        for scope in self._scopes:
            for key, value in dict(scope.state).items():
                noted[str(key)[:_MOST_CHARS]] = _plain(value)
        return {
            **dict(list(noted.items())[:_MOST_KEYS]),
            "workflow_id": self._workflow_id,
            "model_version": self._model_version,
            "begin_time": self._begin_time,
            "terminate_time": self._terminate_time,
        }

    def _tokens_in_flight(self) -> int | None:
        """Tokens of unfinished answers; None when the engine cannot tell for one of them."""
        if self._engine is None:
            return 0
        total = 0
        for scope in self._scopes:
            for request in scope.requests:
                tokens = self._engine.tokens_of(request)
                if tokens is None:
                    return None
                total += tokens
        return total

    def _clock_s(self) -> float:
        """Seconds on a clock that stands still while the engine is paused."""
        return time.monotonic() - (self._engine.paused_s if self._engine is not None else 0.0)


def _plain(value: Any) -> StateValue:
    """``value`` as a beat can carry it."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return str(value)[:_MOST_CHARS]
