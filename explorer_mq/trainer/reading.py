"""Reading one tensor of the newest published policy version back."""

from __future__ import annotations

import asyncio
from typing import Any

from numpy.typing import NDArray

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.objects import get_object
from explorer_mq.bus.state import RunState
from explorer_mq_schemas.errors import ContractError, NotFound
from explorer_mq_schemas.policy import PolicyAnnouncement


async def read_weight(bus: Bus, name: str) -> NDArray[Any]:
    """Tensor ``name`` of the newest version of the ``object`` channel.

    Raises:
        NotFound: no version was published, or it has no such tensor; the message lists some.
        ContractError: the version came by another channel.
    """
    data = await RunState(bus).get("policy")
    if data is None:
        raise NotFound(f"run {bus.names.run} has no published policy version")
    policy = PolicyAnnouncement.decode(data)
    if policy.object is None:
        raise ContractError(
            f"policy version {policy.version} came by channel {policy.channel!r}; read its files"
        )
    buffer = await get_object(bus, bus.names.weights_stream, policy.object)
    return await asyncio.to_thread(_tensor, bytes(buffer), name, policy.version)


def _tensor(buffer: bytes, name: str, version: int) -> NDArray[Any]:
    from safetensors.numpy import load

    tensors = load(buffer)
    if name not in tensors:
        some = ", ".join(sorted(tensors)[:5])
        raise NotFound(f"policy version {version} has no tensor {name!r}; it has {some}, ...")
    found: NDArray[Any] = tensors[name]
    return found
