"""Publishing a policy version: weights first, then the announcement."""

from __future__ import annotations

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.objects import put_object
from explorer_mq.bus.publisher import Publisher
from explorer_mq.bus.state import RunState
from explorer_mq_schemas.errors import InvalidRequest
from explorer_mq_schemas.policy import PolicyAnnouncement

POLICY_KEY = "policy"

KEPT_VERSIONS = 2
"""Older versions leave the weight stream; a worker still fetching one takes the newest then."""


async def publish_policy(
    bus: Bus,
    publisher: Publisher,
    payload: bytes | bytearray | memoryview,
    version: int,
    *,
    trainer: str,
) -> PolicyAnnouncement:
    """Store the weights of ``version``, then announce it: nobody ever sees half of it.

    Raises:
        InvalidRequest: ``version`` is not above the announced one.
    """
    state = RunState(bus)
    newest = await state.get(POLICY_KEY)
    if newest is not None:
        announced = PolicyAnnouncement.decode(newest).version
        if version <= announced:
            raise InvalidRequest(
                f"policy version {version} is not above the announced version {announced}"
            )
    stream = bus.names.weights_stream
    await bus.api(f"STREAM.PURGE.{stream}", {"filter": f"{bus.names.weights(version)}.>"})
    ref = await put_object(publisher, bus.names.weights(version), payload)
    policy = PolicyAnnouncement(
        version=version, channel="object", object=ref, trainer=trainer, announced_at=bus.now()
    )
    await state.put(POLICY_KEY, policy.encode())
    await _forget_old(bus, version)
    return policy


async def _forget_old(bus: Bus, version: int) -> None:
    """Versions need not be consecutive: what is stored decides."""
    stream = bus.names.weights_stream
    first_chunks = f"{bus.names.root}.weights.*.0"
    info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": first_chunks})
    stored = sorted(int(subject.split(".")[3]) for subject in info["state"].get("subjects") or {})
    for old in stored[:-KEPT_VERSIONS]:
        if old < version:
            await bus.api(f"STREAM.PURGE.{stream}", {"filter": f"{bus.names.weights(old)}.>"})
