"""All batches a coordinator knows: open ones, the newest closed ones, and ids used long ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from explorer_mq.core.outcome import batch_result
from explorer_mq.core.snapshot import RunSnapshot, UsedIds
from explorer_mq.core.timeouts import TimeoutHistory
from explorer_mq.live import LiveBatch
from explorer_mq_schemas.batches import BatchResult
from explorer_mq_schemas.errors import InvalidRequest, NotFound
from explorer_mq_schemas.journal import Finalized

REMEMBERED_CLOSED = 500
"""Closed batches whose results are kept and whose late results are recognised."""


class Batches:
    """Batches by id text; only this class decides what is remembered."""

    def __init__(self, *, window: int) -> None:
        self._open: dict[str, LiveBatch] = {}
        self._closed: OrderedDict[str, LiveBatch] = OrderedDict()
        self._used = UsedIds()
        self._reserved: set[str] = set()
        self.history = TimeoutHistory(window=window)

    def restore(self, snapshot: RunSnapshot) -> None:
        """Take up what a replay found."""
        self._used = snapshot.used
        self.history = snapshot.history
        for state in snapshot.batches.values():
            self._put(LiveBatch(state))

    def snapshot(self) -> RunSnapshot:
        """The durable part of all of it."""
        states = {live.name: live.state for live in (*self._closed.values(), *self.open())}
        return RunSnapshot(states, self._used, self.history)

    def open(self) -> list[LiveBatch]:
        """Batches that are not over, in order of submission."""
        return list(self._open.values())

    def closed(self) -> list[LiveBatch]:
        """Remembered batches that are over, in the order in which they ended."""
        return list(self._closed.values())

    def find(self, batch: int | str) -> LiveBatch | None:
        """The open batch of that id."""
        return self._open.get(str(batch))

    def remembered(self, batch: int | str) -> LiveBatch | None:
        """The batch of that id, open or closed."""
        name = str(batch)
        return self._open.get(name) or self._closed.get(name)

    def result(self, batch: int | str) -> BatchResult | None:
        """The result of a remembered closed batch."""
        live = self._closed.get(str(batch))
        return None if live is None else batch_result(live.state)

    def add(self, live: LiveBatch) -> None:
        """A new open batch."""
        self._open[live.name] = live

    @contextmanager
    def reserve(self, batch: int | str) -> Iterator[None]:
        """Keep the id for a batch that is being journalled.

        Raises:
            InvalidRequest: it is active, being submitted, or was used before.
        """
        self.check_unused(batch)
        self._reserved.add(str(batch))
        try:
            yield
        finally:
            self._reserved.discard(str(batch))

    def settle(self, live: LiveBatch) -> None:
        """The batch's end is journalled and folded: it counts as closed from now on."""
        outcome = live.state.outcome
        assert outcome is not None
        if isinstance(outcome, Finalized):
            complete = live.state.closing is not None and live.state.closing.reason == "complete"
            self.history = self.history.add(
                outcome.batch_type, outcome.durations, complete=complete
            )
        self._open.pop(live.name, None)
        self._put(live)
        live.changed.beat()

    def check_unused(self, batch: int | str) -> None:
        """Raise unless ``batch`` may name a new batch.

        Raises:
            InvalidRequest: it is active, or was used before.
        """
        name = str(batch)
        if name in self._open or name in self._reserved:
            raise InvalidRequest(f"batch {name!r} is already active")
        state = self._closed[name].state.phase if name in self._closed else None
        if state is not None or name in self._used:
            raise InvalidRequest(
                f"batch {name!r} is {state or 'closed'} already; a batch id is used once, choose "
                "another"
            )

    def unknown(self, batch: int | str) -> NotFound:
        """The error for an id that is neither open nor remembered."""
        if str(batch) in self._used:
            return NotFound(f"batch {batch!r} is not registered: it was retired long ago")
        return NotFound(f"batch {batch!r} is not registered")

    def _put(self, live: LiveBatch) -> None:
        if live.state.outcome is None:
            self._open[live.name] = live
            return
        self._closed[live.name] = live
        retired = []
        while len(self._closed) > REMEMBERED_CLOSED:
            retired.append(self._closed.popitem(last=False)[0])
        if retired:
            self._used = self._used.add(retired)
