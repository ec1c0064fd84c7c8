"""Checks of the NATS server in use: reachable, new enough, room in JetStream, clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from explorer_mq.cli.checks.check import Check
from explorer_mq.cli.checks.host import server_version
from explorer_mq_schemas.errors import ConfigError, ExplorerError

if TYPE_CHECKING:
    from explorer_mq.bus.connection import Bus
    from explorer_mq.settings import Settings

_GIB = 1 << 30
_FULL = 0.9
_CLOCK_OFF_S = 1.0
_SMALL_PAYLOAD_BYTES = 1 << 20


async def nats_checks(settings: Settings) -> list[Check]:
    """All checks of the server, or the one reason why it cannot be asked."""
    from explorer_mq.bus.connection import Bus

    try:
        async with await Bus.connect(settings.run, settings.nats.options("doctor")) as bus:
            jetstream = await bus.api("INFO")
            return [_version(bus), _payload(bus), store(jetstream), clock(await _offset_s(bus))]
    except ConfigError as error:
        return [Check("nats", "fail", str(error), "see the message")]
    except ExplorerError as error:
        return [Check("nats", "fail", str(error), "start `explorer-mq nats`, or set nats.url")]


def store(jetstream: Mapping[str, Any]) -> Check:
    """File storage used of what the account may use."""
    used, most = jetstream.get("storage", 0), jetstream.get("limits", {}).get("max_storage", -1)
    streams = jetstream.get("streams", 0)
    if most <= 0:
        found = f"{used / _GIB:.2f} GiB in {streams} streams, no limit"
        return Check("jetstream", "ok", found)
    found = f"{used / _GIB:.2f} of {most / _GIB:.2f} GiB in {streams} streams"
    remedy = "raise the account's storage, or shorten streams.results_max_age_s"
    return Check("jetstream", "ok" if used < _FULL * most else "warn", found, remedy)


def clock(offset_s: float | None) -> Check:
    """The server's clock against this host's; deadlines use the server's."""
    if offset_s is None:
        return Check("clock", "ok", "not known before the first stream")
    verdict = "ok" if abs(offset_s) < _CLOCK_OFF_S else "warn"
    remedy = "synchronise the clocks (NTP); times in logs differ by this much"
    found = f"server is {offset_s:+.3f} s from this host"
    return Check("clock", "ok" if verdict == "ok" else "warn", found, remedy)


async def _offset_s(bus: Bus) -> float | None:
    """How far the server is ahead, give or take half a round trip; lists carry its time."""
    asked = time.time()
    streams = (await bus.api("STREAM.LIST")).get("streams") or [{}]
    middle = (asked + time.time()) / 2
    stamp = streams[0].get("ts")
    return datetime.fromisoformat(stamp).timestamp() - middle if stamp else None


def _version(bus: Bus) -> Check:
    return server_version("nats", str(bus.client.connected_server_version), f" at {_where(bus)}")


def _payload(bus: Bus) -> Check:
    limit = bus.max_payload_bytes
    found = f"{limit >> 20} MiB per message"
    remedy = "set max_payload: 8MB in the server's configuration; larger results go in chunks"
    return Check("payload", "ok" if limit > _SMALL_PAYLOAD_BYTES else "warn", found, remedy)


def _where(bus: Bus) -> str:
    return bus.options.shown_url
