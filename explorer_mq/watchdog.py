"""Reporting a standstill with its cause: nothing waits in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from explorer_mq.batches import Batches
from explorer_mq.bus.state import RunState
from explorer_mq.core.why import (
    BatchFacts,
    Facts,
    Finding,
    PoolFacts,
    TrainerFacts,
    WorkerFacts,
    diagnose,
)
from explorer_mq.live import LiveBatch
from explorer_mq.roster import Roster
from explorer_mq.streams import RunStreams
from explorer_mq_schemas.beats import WorkerBeat
from explorer_mq_schemas.errors import ContractError, ExplorerError, TransientError
from explorer_mq_schemas.events import Event
from explorer_mq_schemas.ids import decode_token
from explorer_mq_schemas.policy import PolicyAnnouncement

logger = logging.getLogger(__name__)

Tell = Callable[[Event], Awaitable[None]]


class Watchdog:
    """Tells what everything waits for once nothing has moved for ``period_s`` although work is open.

    Movement is an accepted result, a batch that is opened or closed, or a token that was sampled.
    """

    def __init__(
        self, streams: RunStreams, batches: Batches, roster: Roster, tell: Tell, *, period_s: float
    ) -> None:
        self._streams = streams
        self._batches = batches
        self._roster = roster
        self._tell = tell
        self._period_s = period_s
        self._tokens: dict[str, int] = {}
        self._moved_at = 0.0
        self.stalls = 0
        """Standstills reported since the start."""

    def moved(self) -> None:
        """Something made progress."""
        self._moved_at = self._streams.bus.now()

    def hear(self, beat: WorkerBeat) -> None:
        """Tokens sampled since the last beat of a worker are progress."""
        if self._tokens.get(beat.worker, 0) != beat.generated_tokens:
            self._tokens[beat.worker] = beat.generated_tokens
            self.moved()

    async def run(self) -> None:
        """Watch until cancelled; a standstill is told again each time it has doubled."""
        bus = self._streams.bus
        never = asyncio.Event()
        self.moved()
        told = 0
        while True:
            last = self._moved_at
            try:
                async with asyncio.timeout(last + self._period_s * 2**told - bus.now()):
                    await never.wait()
            except TimeoutError:
                if self._moved_at == last and self._batches.open():
                    await self._report()
                    told += 1
                    continue
            told = 0
            if not self._batches.open():
                self.moved()

    async def why(self) -> list[Finding]:
        """What everything is waiting for at this moment."""
        return diagnose(await self.facts())

    async def facts(self) -> Facts:
        """The run as it stands."""
        bus = self._streams.bus
        run, now = bus.names.run, bus.now()
        batches = tuple(_batch_facts(live, now) for live in self._batches.open())
        workers = tuple(
            WorkerFacts(
                name=runner.worker,
                state=runner.beat.state,
                pools=runner.beat.pools,
                slots=runner.beat.slots,
                running=tuple(runner.running()),
                policy_version=runner.beat.policy_version,
                policy_error=runner.beat.policy_error,
            )
            for runner in self._roster.runners()
            if runner.beat is not None
        )
        try:
            return Facts(
                run=run,
                now=now,
                batches=batches,
                workers=workers,
                pools=await self._pools(),
                trainers=await self._trainers(),
                policy_version=await self._policy_version(),
            )
        except ExplorerError as error:
            return Facts(run=run, now=now, batches=batches, server_error=str(error))

    async def _report(self) -> None:
        self.stalls += 1
        bus = self._streams.bus
        still_s = bus.now() - self._moved_at
        for finding in (await self.why())[:3]:
            text = f"nothing has moved for {still_s:.0f} s: {finding.text}"
            logger.warning("stalled cause=%s %s; try: %s", finding.cause, text, finding.remedy)
            event = Event(
                kind="stalled",
                at=bus.now(),
                text=text,
                cause=finding.cause,
                remedy=finding.remedy,
            )
            try:
                await self._tell(event)
            except TransientError as error:
                logger.warning("stall not told: %s", error)

    async def _pools(self) -> tuple[PoolFacts, ...]:
        bus = self._streams.bus
        totals: dict[str, list[int]] = {}
        for consumer in await _consumers(bus.api, bus.names.tasks_stream):
            pool = decode_token(consumer["config"]["filter_subject"].split(".")[3])
            counts = totals.setdefault(pool, [0, 0])
            counts[0] += int(consumer.get("num_pending", 0))
            counts[1] += int(consumer.get("num_ack_pending", 0))
        return tuple(
            PoolFacts(name=name, pending=pending, leased=leased)
            for name, (pending, leased) in sorted(totals.items())
        )

    async def _trainers(self) -> tuple[TrainerFacts, ...]:
        bus = self._streams.bus
        return tuple(
            TrainerFacts(
                name=decode_token(consumer["name"].removeprefix("t_")),
                unread=int(consumer.get("num_pending", 0)),
                held=int(consumer.get("num_ack_pending", 0)),
            )
            for consumer in await _consumers(bus.api, bus.names.train_stream)
            if consumer["name"].startswith("t_")
        )

    async def _policy_version(self) -> int:
        data = await RunState(self._streams.bus).get("policy")
        try:
            return PolicyAnnouncement.decode(data).version if data else 0
        except ContractError:
            return 0


def _batch_facts(live: LiveBatch, now: float) -> BatchFacts:
    state = live.state
    due = min((retry.due_at for retry in state.retries), default=None)
    opening = state.opening
    return BatchFacts(
        name=live.name,
        phase=str(state.phase),
        tasks=state.task_count,
        settled=state.settled,
        awaits_finalize=not (opening.auto_finalize or state.requested),
        waiting_retries=len(state.retries),
        next_retry_in_s=None if due is None else max(0.0, due - now),
        deadline_in_s=state.deadline_at - now,
        failure=str(live.failure) if live.failure is not None else "",
    )


async def _consumers(
    api: Callable[..., Awaitable[dict[str, Any]]], stream: str
) -> list[dict[str, Any]]:
    """Every consumer of ``stream``; the server answers in pages."""
    found: list[dict[str, Any]] = []
    while True:
        page = await api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        consumers = page.get("consumers") or []
        found.extend(consumers)
        if not consumers or len(found) >= int(page.get("total", 0)):
            return found
