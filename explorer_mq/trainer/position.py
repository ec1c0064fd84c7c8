"""Which training batches a trainer has acknowledged, stored so that no kill of the server forgets it.

The server writes a consumer's acknowledgements to disk a while after it confirmed them: killed in
between, it delivers the batch again (measured: most of those confirmed within the last 60 ms). A
stored message is not forgotten, so the position is one, too.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.state import RunState
from explorer_mq.core.ranges import contains, union
from explorer_mq_schemas.messages import Message


class TrainerPosition(Message):
    """Acknowledged sequences of the training stream as inclusive ranges.

    ``consumer`` is when the trainer's consumer was created: a consumer that was deleted and made
    anew starts over.
    """

    consumer: str
    acked: tuple[tuple[int, int], ...] = Field(default=())


class Position:
    """The stored position of one trainer; its key in the state bucket is ``trainer.<name>``."""

    def __init__(self, bus: Bus, trainer: str) -> None:
        self._state = RunState(bus)
        self._key = f"trainer {trainer}"
        self._value = TrainerPosition(consumer="")
        self._revision = 0

    async def load(self, consumer: dict[str, Any]) -> None:
        """Read it; ``consumer`` is the server's description of the trainer's consumer."""
        created, floor = str(consumer["created"]), int(consumer["ack_floor"]["stream_seq"])
        stored = await self._state.read(self._key)
        self._revision = stored.revision
        known = TrainerPosition.decode(stored.data).acked if stored.data else ()
        if stored.data and TrainerPosition.decode(stored.data).consumer != created:
            known = ()
        self._value = TrainerPosition(
            consumer=created, acked=union(known, ((1, floor),) if floor else ())
        )

    def __contains__(self, seq: int) -> bool:
        return contains(self._value.acked, seq)

    async def add(self, seq: int) -> None:
        """Store that ``seq`` is acknowledged; safe to repeat.

        Raises:
            TransientError: the server did not confirm it.
        """
        while seq not in self:
            value = self._value.model_copy(
                update={"acked": union(self._value.acked, ((seq, seq),))}
            )
            revision = await self._state.swap(self._key, value.encode(), revision=self._revision)
            if revision is not None:
                self._value, self._revision = value, revision
                return
            await self._merge()

    async def _merge(self) -> None:
        """Another write came first: one of ours whose answer was lost, or another process's."""
        stored = await self._state.read(self._key)
        self._revision = stored.revision
        if stored.data:
            theirs = TrainerPosition.decode(stored.data)
            if theirs.consumer == self._value.consumer:
                self._value = self._value.model_copy(
                    update={"acked": union(self._value.acked, theirs.acked)}
                )
