"""A state dict as one safetensors buffer, the form in which weights travel.

Equal weights give equal bytes: tensors are sorted by item size, then name. ``torch`` is never
imported here; a torch tensor brings its own module along.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from explorer_mq_schemas.errors import ContractError

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Names that torch and numpy share (bfloat16 and float8 in numpy by ``ml_dtypes``)."""


class _Tensor(NamedTuple):
    """One entry of the file: its name there, dtype, shape and bytes."""

    name: str
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]


def pack_weights(state_dict: Mapping[str, Any]) -> bytearray:
    """One safetensors buffer with every tensor of ``state_dict`` in its own dtype.

    Tensors may live on any device, be non-contiguous, or share storage (tied weights are stored
    once per name). Values are torch tensors or numpy arrays.

    Raises:
        ContractError: nothing to store; a value is no dense, whole tensor; its dtype has no
            safetensors form; or it holds NaN or infinity. The message names the tensor.
    """
    if not state_dict:
        raise ContractError("weights: the state dict is empty")
    tensors = [_tensor(name, value) for name, value in state_dict.items()]
    tensors.sort(key=lambda tensor: (-tensor.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.raw.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (at, end),
        }
        at = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    buffer = bytearray(8 + len(text) + at)
    buffer[:8] = len(text).to_bytes(8, "little")
    buffer[8 : 8 + len(text)] = text
    body = np.frombuffer(buffer, np.uint8, offset=8 + len(text))
    at = 0
    for tensor in tensors:
        body[at : at + tensor.raw.nbytes] = tensor.raw
        at += tensor.raw.nbytes
    return buffer


def fingerprint(buffer: bytes | bytearray | memoryview) -> str:
    """sha256 of packed weights in hex; equals ``PolicyAnnouncement.object.sha256``."""
    return hashlib.sha256(buffer).hexdigest()


def _tensor(name: object, value: Any) -> _Tensor:
    if not isinstance(name, str) or name == "__metadata__":
        raise ContractError(f"weights: {name!r} is not a tensor name")
    if isinstance(value, np.ndarray):
        return _from_numpy(name, value)
    if hasattr(value, "detach") and hasattr(value, "is_meta"):
        return _from_torch(name, value)
    raise ContractError(
        f"weights: {name} is a {type(value).__name__}; give torch tensors or numpy arrays"
    )


def _from_numpy(name: str, array: NDArray[Any]) -> _Tensor:
    dtype = _dtype(name, array.dtype.name)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # An extension dtype (bfloat16) is not np.inexact for numpy, but has its own isfinite.
    if dtype.startswith(("F", "BF")) and not np.isfinite(array).all():
        raise _not_finite(name)
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _Tensor(name, dtype, array.dtype.itemsize, array.shape, raw)


def _from_torch(name: str, tensor: Any) -> _Tensor:
    if hasattr(tensor, "full_tensor"):
        raise ContractError(
            f"weights: {name} is sharded over ranks; gather it first, e.g. with full_tensor()"
        )
    torch: Any = sys.modules["torch"]
    if tensor.is_meta or tensor.layout != torch.strided:
        raise ContractError(f"weights: {name} is not a dense tensor with data")
    dtype = _dtype(name, str(tensor.dtype).removeprefix("torch."))
    tensor = tensor.detach()
    if tensor.is_floating_point():
        # float8 has no isfinite of its own.
        wide = tensor.float() if tensor.element_size() == 1 else tensor
        if not bool(wide.isfinite().all()):
            raise _not_finite(name)
    shape = tuple(tensor.shape)
    itemsize = int(tensor.element_size())
    flat = tensor.cpu().resolve_neg().contiguous().reshape(-1)
    return _Tensor(name, dtype, itemsize, shape, flat.view(torch.uint8).numpy())


def _dtype(name: str, dtype: str) -> str:
    try:
        return _DTYPES[dtype]
    except KeyError:
        raise ContractError(f"weights: {name} has dtype {dtype}, which cannot be stored") from None


def _not_finite(name: str) -> ContractError:
    return ContractError(
        f"weights: {name} holds NaN or infinity; nothing was published, workers keep their policy"
    )
