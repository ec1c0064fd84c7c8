"""The fenced journal: one writer, refused as soon as somebody else has written."""

from __future__ import annotations

import asyncio

from explorer_mq.bus.connection import Bus, JetStreamError
from explorer_mq.bus.follower import Follower
from explorer_mq.bus.publisher import WRONG_LAST_SEQUENCE, OutMessage, publish_atomic
from explorer_mq_schemas.errors import BusUnavailable, FencedError
from explorer_mq_schemas.ids import new_id
from explorer_mq_schemas.journal import JournalEntry, decode_entry

_WRITER = "Exmq-Writer"


class Journal:
    """Append-only log of batch decisions.

    Each append carries the last sequence this writer knows on its first message; JetStream refuses
    it when another writer was faster. That fence, not any lease, keeps two coordinators apart.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._writer = new_id("writer")
        self._count = 0
        self._last_seq = 0
        self._lock = asyncio.Lock()

    async def replay(self) -> list[JournalEntry]:
        """Every entry so far, oldest first; appends then continue after the last.

        Raises:
            ContractError: an entry is unreadable; nothing is guessed from the rest.
        """
        names = self._bus.names
        async with Follower(self._bus, names.journal_stream, [names.journal]) as follower:
            stored = await follower.catch_up()
        self._last_seq = stored[-1].seq if stored else await self._tail()
        return [decode_entry(message.data) for message in stored]

    async def append(self, *entries: JournalEntry) -> None:
        """Store ``entries`` in order, all or none.

        Raises:
            FencedError: another coordinator has written; this one must stop.
        """
        async with self._lock:
            self._count += 1
            mark = f"{self._writer}/{self._count}"
            messages = [
                OutMessage(self._bus.names.journal, entry.encode(), {_WRITER: mark})
                for entry in entries
            ]
            await self._store(messages, mark)

    async def _store(self, messages: list[OutMessage], mark: str) -> None:
        while True:
            try:
                ack = await publish_atomic(self._bus, messages, expect_last_seq=self._last_seq)
            except BusUnavailable:
                if await self._is_mine(mark):
                    self._last_seq += len(messages)
                    return
            except JetStreamError as error:
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise
                if await self._is_mine(mark):
                    self._last_seq += len(messages)
                    return
                raise FencedError(
                    f"run {self._bus.names.run}: another coordinator writes the journal; this one "
                    "has lost leadership and stops"
                ) from error
            else:
                self._last_seq = ack.seq
                return

    async def _is_mine(self, mark: str) -> bool:
        """Whether the journal's last entry is the append whose answer was lost."""
        found = await self._bus.api(
            f"STREAM.MSG.GET.{self._bus.names.journal_stream}",
            {"last_by_subj": self._bus.names.journal},
        )
        import base64

        headers = base64.b64decode(found["message"].get("hdrs", "")).decode()
        return f"{_WRITER}: {mark}" in headers

    async def _tail(self) -> int:
        info = await self._bus.api(f"STREAM.INFO.{self._bus.names.journal_stream}")
        return int(info["state"]["last_seq"])
