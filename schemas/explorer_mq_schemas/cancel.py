"""Telling workers to stop work that nobody needs any more."""

from __future__ import annotations

from explorer_mq_schemas.messages import Message


class Cancel(Message):
    """Stop the slices of ``batch``; with ``tasks`` only those of these task numbers.

    Volatile (core NATS): a worker that misses it finds its result refused or deleted as late.
    """

    batch: str
    tasks: tuple[int, ...] = ()
    reason: str = ""
