"""Which coordinator leads a run: a key that expires unless its holder renews it.

The lease only keeps the peace. What keeps two leaders from both deciding is the journal's fence.
"""

from __future__ import annotations

import asyncio
import logging

from pydantic import Field

from explorer_mq.bus.connection import Bus, Msg, NoResponders, Subscription
from explorer_mq.bus.disconnects import watch_disconnects
from explorer_mq.bus.state import RunState, Value
from explorer_mq_schemas.errors import ContractError, FencedError, TransientError
from explorer_mq_schemas.messages import Message

logger = logging.getLogger(__name__)

LEADER_KEY = "leader"
_RENEWALS_PER_TTL = 4
_PING_S = 0.5
_PAUSE_S = 1.0


class Leader(Message):
    """Who leads, since when (Unix seconds); ``ping`` is a subject it answers while connected."""

    name: str
    ping: str
    since: float = 0.0
    ttl_s: int = Field(ge=1)


class Leadership:
    """One coordinator's claim to lead its run; ``name`` is its connection's name."""

    def __init__(self, bus: Bus, name: str, *, ttl_s: int) -> None:
        self._bus = bus
        self._state = RunState(bus)
        self._me = Leader(name=name, ping=bus.new_inbox(), since=bus.now(), ttl_s=ttl_s)
        self._revision = 0
        self._told = False
        self._pings: Subscription | None = None

    async def acquire(self, *, standby: bool = False) -> None:
        """Become the leader, waiting while a dead leader's lease runs out.

        Args:
            standby: wait for a living leader to end, too.

        Raises:
            FencedError: another coordinator leads and is alive; names it.
        """
        gone = asyncio.Event()
        leaders = self._bus.names

        def hear(connection: str) -> None:
            if connection.startswith(leaders.connection("coordinator")):
                gone.set()

        disconnects = await watch_disconnects(self._bus, hear)
        try:
            while not await self._try(gone, standby=standby):
                gone.clear()
        finally:
            await disconnects.unsubscribe()

        async def answer(message: Msg) -> None:
            await self._bus.publish(message.reply, b"alive")

        self._pings = await self._bus.subscribe(self._me.ping, answer)

    async def hold(self) -> None:
        """Renew until cancelled.

        Raises:
            FencedError: another coordinator leads now.
        """
        never = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._me.ttl_s / _RENEWALS_PER_TTL):
                    await never.wait()
            except TimeoutError:
                await self._renew()

    async def release(self) -> None:
        """Give the lease up, so that a standby need not wait for it to run out."""
        if self._pings is not None:
            await self._pings.unsubscribe()
            self._pings = None
        if self._revision and self._bus.is_connected:
            revision, self._revision = self._revision, 0
            try:
                await self._state.swap(LEADER_KEY, b"", revision=revision)
            except TransientError as error:
                logger.warning("leader lease not given up, it runs out by itself: %s", error)

    async def _try(self, gone: asyncio.Event, *, standby: bool) -> bool:
        """Take the lease, or wait until it may be free; a server in trouble is waited for."""
        try:
            held = await self._state.read(LEADER_KEY)
            if await self._take(held):
                return True
            self._say_waiting(held, standby=standby)
            await self._outlast(gone, standby=standby)
        except TransientError as error:
            logger.warning("leader lease not taken yet: %s", error)
            await self._bus.wait_reconnect(_PAUSE_S)
        return False

    def _say_waiting(self, held: Value, *, standby: bool) -> None:
        if standby and held.data and not self._told:
            self._told = True
            logger.info(
                "%s waits as standby; %s leads", self._me.name, Leader.decode(held.data).name
            )

    async def _take(self, held: Value) -> bool:
        """Write the lease if nobody alive holds it."""
        if held.data and not await self._is_dead(held):
            return False
        revision = await self._state.swap(
            LEADER_KEY, self._me.encode(), revision=held.revision, ttl_s=self._me.ttl_s
        )
        if revision is None:
            return False
        self._revision = revision
        return True

    async def _is_dead(self, held: Value) -> bool:
        """The holder's connection to the server does not exist any more."""
        try:
            holder = Leader.decode(held.data)
        except ContractError:
            return True
        try:
            await self._bus.request(holder.ping, timeout_s=_PING_S)
        except NoResponders:
            return True
        except TransientError:
            return False
        return False

    async def _outlast(self, gone: asyncio.Event, *, standby: bool) -> None:
        """Return when the lease may be free; a renewal seen meanwhile shows a living leader."""
        seen = await self._state.read(LEADER_KEY)
        if not seen.data:
            return
        holder = Leader.decode(seen.data)
        async with self._state.follow(LEADER_KEY) as follower:
            if follower.backlog:
                await follower.next_batch()
            renewed = asyncio.create_task(follower.next_batch(), name="leader renewals")
            freed = asyncio.create_task(gone.wait(), name="leader gone")
            try:
                done, _ = await asyncio.wait(
                    (renewed, freed),
                    timeout=holder.ttl_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                renewed.cancel()
                freed.cancel()
                await asyncio.gather(renewed, freed, return_exceptions=True)
        if renewed in done and not standby and renewed.result()[-1].data:
            raise FencedError(
                f"run {self._bus.names.run} is led by {holder.name}, which is alive; stop it, or "
                "start this one with --standby to take over when it ends"
            )

    async def _renew(self) -> None:
        try:
            revision = await self._state.swap(
                LEADER_KEY, self._me.encode(), revision=self._revision, ttl_s=self._me.ttl_s
            )
            if revision is None:
                held = await self._state.read(LEADER_KEY)
                if held.data and self._is_mine(held):
                    self._revision = held.revision
                    return
                if held.data:
                    raise FencedError(
                        f"run {self._bus.names.run}: another coordinator leads now "
                        f"({Leader.decode(held.data).name}); this one has lost leadership and stops"
                    )
                # It ran out while the server or this process stood still, and nobody took it.
                revision = await self._state.swap(
                    LEADER_KEY, self._me.encode(), revision=held.revision, ttl_s=self._me.ttl_s
                )
        except TransientError as error:
            logger.warning("leader lease not renewed, again soon: %s", error)
            return
        if revision is not None:
            self._revision = revision

    def _is_mine(self, held: Value) -> bool:
        return Leader.decode(held.data).ping == self._me.ping
