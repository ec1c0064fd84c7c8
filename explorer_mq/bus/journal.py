"""The fenced journal: one writer, refused as soon as somebody else has written.

:meth:`Journal.append` hands entries to the writer task, which stores all that have gathered as one
atomic batch. A caller that is cancelled leaves its write to the writer: whether an entry is stored
never depends on who still waits.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from explorer_mq.bus.connection import Bus, JetStreamError
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.publisher import (
    ATOMIC_LIMIT,
    WRONG_LAST_SEQUENCE,
    OutMessage,
    publish_atomic,
)
from explorer_mq_schemas.errors import BusUnavailable, FencedError, NotFound, TransientError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.journal import BatchEntry, JournalEntry, Snapshot, decode_entry

logger = logging.getLogger(__name__)

_WRITER = "Exmq-Writer"
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class _Waiting(NamedTuple):
    entries: Sequence[JournalEntry]
    then: Callable[[], None] | None
    stored: asyncio.Future[int]


class Journal:
    """Append-only log of batch decisions.

    Each write carries the last sequence this writer knows on its first message; JetStream refuses
    it when another writer was faster. That fence, not any lease, keeps two coordinators apart.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._writer = new_id("writer")
        self._count = 0
        self._waiting: deque[_Waiting] = deque()
        self._asked = asyncio.Event()
        self._fenced: FencedError | None = None
        self.last_seq = 0
        """Sequence of the last entry that is known to be stored."""

    async def replay(self) -> tuple[Snapshot | None, list[BatchEntry]]:
        """The newest snapshot and the entries that it does not cover, oldest first.

        Appends then continue after the last.

        Raises:
            ContractError: an entry is unreadable; nothing is guessed from the rest.
        """
        names = self._bus.names
        async with Follower(self._bus, names.journal_stream, [names.journal]) as follower:
            stored = await follower.catch_up()
        self.last_seq = stored[-1].seq if stored else await self._tail()
        snapshot: Snapshot | None = None
        entries: list[tuple[int, BatchEntry]] = []
        for message in stored:
            entry = decode_entry(message.data)
            if isinstance(entry, Snapshot):
                snapshot = entry
            else:
                entries.append((message.seq, entry))
        covered = 0 if snapshot is None else snapshot.journal_seq
        return snapshot, [entry for seq, entry in entries if seq > covered]

    async def append(self, *entries: JournalEntry, then: Callable[[], None] | None = None) -> int:
        """Store ``entries`` in order, all or none; returns the sequence of the last.

        While the server is away this waits for it. :meth:`run` must be running.

        Args:
            entries: what to store.
            then: called as soon as they are stored, before anything else is written: what it
                changes is in step with :attr:`last_seq`, whether the caller still waits or not.

        Raises:
            FencedError: another coordinator has written; this one must stop.
        """
        if self._fenced is not None:
            raise self._fenced
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(entries, then, stored))
        self._asked.set()
        return await asyncio.shield(stored)

    async def run(self) -> None:
        """Write what :meth:`append` gathers until cancelled.

        Raises:
            FencedError: another coordinator has written.
        """
        while True:
            self._asked.clear()
            while self._waiting:
                await self._write(self._gather())
            await self._asked.wait()

    async def trim(self, snapshot: Snapshot) -> None:
        """Remove the entries that ``snapshot`` covers."""
        names = self._bus.names
        await self._bus.api(
            f"STREAM.PURGE.{names.journal_stream}", {"seq": snapshot.journal_seq + 1}
        )

    def _gather(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and size + len(self._waiting[0].entries) <= ATOMIC_LIMIT:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].entries)
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        self._count += 1
        mark = f"{self._writer}/{self._count}"
        entries = [entry for waiting in batch for entry in waiting.entries]
        messages = [
            OutMessage(self._bus.names.journal, entry.encode(), {_WRITER: mark})
            for entry in entries
        ]
        try:
            await self._store(messages, mark)
        except BaseException as error:
            self._fail([*batch, *self._waiting], error)
            raise
        self.last_seq += len(messages)
        for waiting in batch:
            if waiting.then is not None:
                waiting.then()
            if not waiting.stored.done():
                waiting.stored.set_result(self.last_seq)

    def _fail(self, batch: Sequence[_Waiting], error: BaseException) -> None:
        if isinstance(error, FencedError):
            self._fenced = error
        self._waiting.clear()
        for waiting in batch:
            stored = waiting.stored
            if not stored.done():
                stored.set_exception(
                    error
                    if isinstance(error, Exception)
                    else BusUnavailable("the journal was closed; the entry may be stored or not")
                )
                stored.exception()  # nobody may wait for it any more

    async def _store(self, messages: list[OutMessage], mark: str) -> None:
        """Store the batch, whatever it takes; an answer that was lost is looked up."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await publish_atomic(self._bus, messages, expect_last_seq=self.last_seq)
            except JetStreamError as error:
                if error.err_code == WRONG_LAST_SEQUENCE:
                    if await self._is_mine(mark):
                        return
                    raise FencedError(
                        f"run {self._bus.names.run}: another coordinator writes the journal; this "
                        "one has lost leadership and stops"
                    ) from error
                logger.warning("journal: %s; again in %.1f s", error, pause_s)
            except TransientError as error:
                logger.warning("journal: %s; again when the server is back", error)
                if await self._is_mine(mark):
                    return
            else:
                return
            await self._bus.wait_reconnect(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def _is_mine(self, mark: str) -> bool:
        """Whether the journal's last entry is the write whose answer was lost."""
        names = self._bus.names
        while True:
            try:
                found = await self._bus.api(
                    f"STREAM.MSG.GET.{names.journal_stream}", {"last_by_subj": names.journal}
                )
            except NotFound:
                return False
            except TransientError:
                await self._bus.wait_reconnect(_LONGEST_PAUSE_S)
                continue
            headers = base64.b64decode(found["message"].get("hdrs", "")).decode()
            return f"{_WRITER}: {mark}\r\n" in headers

    async def _tail(self) -> int:
        info = await self._bus.api(f"STREAM.INFO.{self._bus.names.journal_stream}")
        return int(info["state"]["last_seq"])
