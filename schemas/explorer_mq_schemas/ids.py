"""Ids and their form on the wire.

A NATS subject token may hold neither ``.``, ``*``, ``>`` nor white space. Ids that come from users
(batch ids, task-set names) are therefore percent-encoded byte by byte; the alphabet that stays as it
is (letters, digits, ``-``, ``_``) covers the usual ids, so they stay readable in ``nats`` tools.
"""

from __future__ import annotations

import math
import re
import secrets
from urllib.parse import unquote_to_bytes

from explorer_mq_schemas.errors import ConfigError, ContractError, InvalidRequest

BatchId = int | str

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+\Z")
MAX_TOKEN_CHARS = 240
"""A durable's name is a token and up to 9 characters more; nats-server allows it 255."""


def encode_token(text: str) -> str:
    """One subject token that stands for ``text``; the inverse of :func:`decode_token`.

    Raises:
        InvalidRequest: ``text`` is empty, is not valid Unicode or its token exceeds 240 characters.
    """
    if not text:
        raise InvalidRequest("an id must not be empty")
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"id {text!r} is not valid Unicode text") from error
    token = "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in raw)
    if len(token) > MAX_TOKEN_CHARS:
        raise InvalidRequest(
            f"id {text[:40]!r}... is too long: its subject token has {len(token)} characters, "
            f"the limit is {MAX_TOKEN_CHARS}"
        )
    return token


def decode_token(token: str) -> str:
    """The text a subject token stands for.

    Raises:
        ContractError: the token was not made by :func:`encode_token`.
    """
    if len(token) > MAX_TOKEN_CHARS or not _TOKEN.match(token):
        raise ContractError(f"subject token {token[:80]!r} is not a percent-encoded id")
    try:
        text = unquote_to_bytes(token).decode()
    except UnicodeDecodeError as error:
        raise ContractError(f"subject token {token[:80]!r} is not UTF-8") from error
    if encode_token(text) != token:
        raise ContractError(f"subject token {token[:80]!r} is not in canonical form")
    return text


def check_run(run: str) -> str:
    """``run`` itself if it may name streams and subjects: 1 to 64 of ``A-Z a-z 0-9 _ -``.

    Raises:
        ConfigError: it may not.
    """
    if not _RUN.match(run):
        raise ConfigError(f"run {run!r}: use 1 to 64 letters, digits, '_' or '-'")
    return run


def new_id(prefix: str) -> str:
    """A fresh id such as ``worker-3f9c2a71``; 32 random bits."""
    return f"{prefix}-{secrets.token_hex(4)}"


def sort_batch_id(batch_id: BatchId) -> tuple[float, int]:
    """Order of batches: train step n, then its evals ``"n/name"``, then step n + 1, then names.

    An int ``b`` sorts as ``(b, 0)``, a string with leading digits as ``(that number, 1)`` and any
    other string as ``(inf, 1)``; ties keep the order of submission.
    """
    if isinstance(batch_id, int):
        return (batch_id, 0)
    digits = re.match(r"[0-9]+", batch_id)
    return (int(digits.group()), 1) if digits else (math.inf, 1)
