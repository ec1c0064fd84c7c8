"""The streams and consumers of a run, as data; what is missing or different; making it so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from explorer_mq.bus.connection import Bus, JetStreamError, Msg
from explorer_mq_schemas.errors import ConfigError, NotFound
from explorer_mq_schemas.subjects import Lane, RunNames

logger = logging.getLogger(__name__)

_NS = 1_000_000_000
_DAY_S = 86_400
_NO_ROOM = (10023, 10047)
"""The server's codes for being out of resources or storage: nothing is wrong with what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """How much each stream keeps; bytes and seconds, None is no limit."""

    replicas: int = 1
    results_max_bytes: int | None = None
    results_max_age_s: float | None = 7 * _DAY_S
    train_max_age_s: float | None = 7 * _DAY_S
    dead_max_age_s: float | None = 30 * _DAY_S


@dataclass(frozen=True, slots=True)
class Difference:
    """A stream that is missing (``field`` empty) or differs in one setting."""

    stream: str
    field: str
    wanted: Any
    found: Any


def topology(names: RunNames, limits: StreamLimits) -> tuple[dict[str, Any], ...]:
    """Configuration of every stream of the run, as the server's API takes it."""
    forever = 0
    results_bytes = limits.results_max_bytes or -1

    def age(seconds: float | None) -> int:
        return forever if seconds is None else int(seconds * _NS)

    def stream(name: str, *subjects: str, **options: Any) -> dict[str, Any]:
        return {
            "name": name,
            "subjects": list(subjects),
            "storage": "file",
            "retention": "limits",
            "num_replicas": limits.replicas,
            "max_consumers": -1,
            "allow_direct": True,
            **options,
        }

    return (
        stream(
            names.tasks_stream,
            names.all_tasks,
            retention="workqueue",
            discard="new",
            allow_atomic=True,
            duplicate_window=600 * _NS,
        ),
        stream(
            names.results_stream,
            names.all_results,
            names.all_attempts,
            names.all_objects,
            allow_atomic=True,
            max_bytes=results_bytes,
            max_age=age(limits.results_max_age_s),
        ),
        stream(names.journal_stream, names.journal, allow_atomic=True),
        stream(names.train_stream, names.all_training, max_age=age(limits.train_max_age_s)),
        stream(names.dead_stream, names.all_dead, max_age=age(limits.dead_max_age_s)),
        stream(names.weights_stream, names.all_weights),
        stream(
            names.state_stream,
            f"$KV.{names.state_bucket}.>",
            max_msgs_per_subject=1,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
        ),
    )


async def diff(bus: Bus, limits: StreamLimits | None = None) -> list[Difference]:
    """What the server has differently from :func:`topology`."""
    found: list[Difference] = []
    for wanted in topology(bus.names, limits or StreamLimits()):
        name = wanted["name"]
        try:
            info = await bus.api(f"STREAM.INFO.{name}")
        except NotFound:
            found.append(Difference(name, "", wanted, None))
            continue
        config = info["config"]
        found.extend(
            Difference(name, field, value, config.get(field))
            for field, value in wanted.items()
            if config.get(field, _zero(value)) != value
        )
    return found


async def ensure(bus: Bus, limits: StreamLimits | None = None) -> list[Difference]:
    """Create what is missing, change what may be changed; returns what was different.

    Raises:
        ConfigError: a stream differs in a setting the server cannot change.
    """
    limits = limits or StreamLimits()
    differences = await diff(bus, limits)
    wanted = {spec["name"]: spec for spec in topology(bus.names, limits)}
    for name in dict.fromkeys(difference.stream for difference in differences):
        missing = any(d.stream == name and not d.field for d in differences)
        call = "CREATE" if missing else "UPDATE"
        try:
            await bus.api(f"STREAM.{call}.{name}", wanted[name])
        except JetStreamError as error:
            if error.err_code in _NO_ROOM:
                raise
            fields = ", ".join(d.field for d in differences if d.stream == name) or "all"
            raise ConfigError(f"stream {name} cannot be set up ({fields}): {error}") from error
    return differences


async def count_messages(bus: Bus) -> int:
    """Messages in all streams of the run that exist."""
    count = 0
    for spec in topology(bus.names, StreamLimits()):
        try:
            info = await bus.api(f"STREAM.INFO.{spec['name']}")
        except NotFound:
            continue
        count += int(info["state"]["messages"])
    return count


async def remove(bus: Bus) -> None:
    """Delete every stream of the run, with all it holds."""
    for spec in topology(bus.names, StreamLimits()):
        try:
            await bus.api(f"STREAM.DELETE.{spec['name']}")
        except NotFound:
            continue


async def ensure_pool(bus: Bus, pool: str, *, lease_s: float) -> None:
    """The two durable consumers (lanes) from which workers of ``pool`` pull slices."""
    for lane in Lane:
        await _ensure_consumer(
            bus,
            bus.names.tasks_stream,
            {
                "durable_name": bus.names.pool_consumer(pool, lane),
                "filter_subject": bus.names.pool_filter(pool, lane),
                "ack_policy": "explicit",
                "ack_wait": int(lease_s * _NS),
                "max_deliver": -1,
                "max_ack_pending": -1,
                "max_waiting": 8192,
                "deliver_policy": "all",
                "replay_policy": "instant",
            },
        )


async def ensure_trainer(bus: Bus, trainer: str, *, lease_s: float) -> None:
    """The durable consumer that keeps one trainer's position in the training batches."""
    await _ensure_consumer(
        bus,
        bus.names.train_stream,
        {
            "durable_name": bus.names.trainer_consumer(trainer),
            "filter_subject": bus.names.manifests(),
            "ack_policy": "explicit",
            "ack_wait": int(lease_s * _NS),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "deliver_policy": "all",
            "replay_policy": "instant",
        },
    )


async def wait_ready(bus: Bus, pools: Iterable[str]) -> None:
    """Return once the run's consumers for ``pools`` exist, waiting for their creation."""
    changed = asyncio.Event()

    async def note(_: Msg) -> None:
        changed.set()

    stream = bus.names.tasks_stream
    advisories = await bus.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.{stream}.>", note)
    forget = bus.on_reconnect(changed.set)
    try:
        for pool in pools:
            for lane in Lane:
                name = bus.names.pool_consumer(pool, lane)
                while not await _has_consumer(bus, stream, name):
                    logger.info("run=%s pool=%s waits for its coordinator", bus.names.run, pool)
                    await changed.wait()
                    changed.clear()
    finally:
        forget()
        await advisories.unsubscribe()


async def _has_consumer(bus: Bus, stream: str, name: str) -> bool:
    try:
        await bus.api(f"CONSUMER.INFO.{stream}.{name}")
    except NotFound:
        return False
    return True


async def _ensure_consumer(bus: Bus, stream: str, config: dict[str, Any]) -> None:
    name = config["durable_name"]
    await bus.api(
        f"CONSUMER.DURABLE.CREATE.{stream}.{name}",
        {"stream_name": stream, "config": config, "action": ""},
    )


def _zero(value: object) -> object:
    """The server leaves settings at their zero value out of its replies."""
    return type(value)() if isinstance(value, (int, bool, str)) else None
