"""Keeps batches in flight: submits each until it is acknowledged, and follows it to its end."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from explorer_mq.chaos.audit import Submitted
from explorer_mq.chaos.feed import Feed
from explorer_mq.chaos.workload import PlannedBatch
from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.crew import Crew
from explorer_mq_schemas.batches import BatchResult
from explorer_mq_schemas.errors import (
    ExplorerError,
    FencedError,
    InvalidRequest,
    NotFound,
    TransientError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Calls that a killed coordinator will never answer are given up soon: the load must go on.
_CALL_S = 3.0
_WAIT_S = 1.0
_PAUSE_S = 0.2
_WORDS = 12
_RETRIED = (TransientError, NotFound, FencedError, TimeoutError)


@dataclass(slots=True)
class Followed:
    """One batch of the load: whether its submit was acknowledged, and what it has become."""

    planned: PlannedBatch
    is_acknowledged: bool = False
    state: str = ""
    unknown: int = 0
    """How often a coordinator said it did not know the batch after it had been acknowledged."""

    def submitted(self) -> Submitted:
        """What the audit needs."""
        planned = self.planned
        return Submitted(
            batch=planned.name,
            is_train=planned.batch_type == "train",
            expected=planned.expected,
            runs=planned.runs,
            state=self.state,
        )


class Load:
    """A fixed number of lanes, each submitting its next batch when the last is over."""

    def __init__(
        self,
        handle: CoordinatorHandle,
        feed: Feed,
        planned: Callable[[int], PlannedBatch],
        *,
        lanes: int,
    ) -> None:
        self._handle = handle
        self._feed = feed
        self._planned = planned
        self._numbers = itertools.count(1)
        self._stop = asyncio.Event()
        self._crew = Crew()
        self._lanes = [
            self._crew.start(self._lane(), name=f"load {number}") for number in range(lanes)
        ]
        self.followed: list[Followed] = []
        self.refusals: Counter[str] = Counter()

    @property
    def closed(self) -> int:
        """Batches that are over."""
        return sum(1 for one in self.followed if one.state)

    async def finish(self, seconds: float) -> int:
        """Submit no more and wait for what is open; returns how many batches did not end in time."""
        self._stop.set()
        done, pending = await asyncio.wait(self._lanes, timeout=seconds)
        for lane in done:
            lane.result()
        await self._crew.close()
        return len(pending)

    async def failed(self) -> BaseException:
        """Wait for a refusal that no fault explains."""
        return await self._crew.failed()

    async def _lane(self) -> None:
        while not self._stop.is_set():
            one = Followed(self._planned(next(self._numbers)))
            self.followed.append(one)
            await self._until(lambda one=one: self._submit(one))  # type: ignore[misc]
            one.is_acknowledged = True
            one.state = await self._until(lambda one=one: self._look(one))  # type: ignore[misc]
            self._feed.changed.beat()

    async def _submit(self, one: Followed) -> bool:
        planned = one.planned
        try:
            await self._handle.submit_batch(
                batch_id=planned.batch_id,
                tasks=planned.tasks,
                batch_type=planned.batch_type,
                auto_finalize=True,
            )
        except InvalidRequest as error:
            # The reply of an earlier try was lost.
            if "already" not in str(error):
                raise
        return True

    async def _look(self, one: Followed) -> str | None:
        try:
            found = await self._handle.wait_batch(one.planned.batch_id, seconds=_WAIT_S)
        except NotFound as error:
            one.unknown += "not registered" in str(error)
            raise
        return str(found.state) if isinstance(found, BatchResult) else None

    async def _until(self, call: Callable[[], Awaitable[T | None]]) -> T:
        """Repeat ``call`` until it returns something; what faults explain is counted and repeated."""
        while True:
            try:
                async with asyncio.timeout(_CALL_S):
                    found = await call()
            except _RETRIED as error:
                self.refusals[_gist(error)] += 1
                await self._feed.changed.wait(_PAUSE_S)
            else:
                if found is not None:
                    return found


def _gist(error: BaseException) -> str:
    """The kind of refusal, without ids: texts are counted by it."""
    words = str(error).split() if isinstance(error, ExplorerError) else []
    plain = (word for word in words[:_WORDS] if not any(letter.isdigit() for letter in word))
    return " ".join([type(error).__name__ + ":", *plain])
