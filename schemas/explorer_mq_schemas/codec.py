"""Experiences in one buffer: a valid safetensors file, samples packed end to end.

For readers in any language: the buffer is 8 bytes little-endian header length, a JSON header, then
the tensors. Every tensor starts at a multiple of its item size. N is the number of experiences.

    cu_seqlens            int64 [N + 1]   sample i is tokens[cu_seqlens[i]:cu_seqlens[i + 1]]
    tokens                int32 [sum T]
    prompt_length         int32 [N]       the response starts there
    reward                float32 [N]     NaN: none
    run, step             int32 [N]
    policy_version_start  int64 [N]       -1: unknown
    policy_version_end    int64 [N]
    versions              int64 [S, 3]    version, start, end in the response
    versions.cu_seqlens   int64 [N + 1]   rows of ``versions`` of each sample
    F, F.cu_seqlens       optional array F (logprobs, action_mask as uint8, ...) packed likewise
    F.present             uint8 [N]       only when some samples have no F
    mm/<i>/<key>          multi-modal tensor ``key`` of sample i

``__metadata__`` holds ``format``, ``schema_version`` and ``items``: a JSON list with one object per
sample of all other fields that are not at their default. What JSON lacks changes on the way: in
``info`` tuples become lists, numpy arrays lists, NaN null. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.experiences import (
    ARRAY_DTYPES,
    EID,
    Experience,
    ExperienceType,
    VersionSegment,
    as_array,
)

FORMAT = "exmq.experiences"
VERSION = "1"
MAX_BYTES = 4 << 30

_TYPES = get_args(ExperienceType)

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SCALARS: dict[str, np.dtype[Any]] = {
    "prompt_length": np.dtype("<i4"),
    "reward": np.dtype("<f4"),
    "run": np.dtype("<i4"),
    "step": np.dtype("<i4"),
    "policy_version_start": np.dtype("<i8"),
    "policy_version_end": np.dtype("<i8"),
}
_INT64 = np.dtype("<i8")
_INT32 = np.dtype("<i4")
_ITEM_FIELDS = (
    "truncate_status",
    "info",
    "metrics",
    "prompt_text",
    "response_text",
    "messages",
    "tools",
    "chosen_messages",
    "rejected_messages",
    "custom_fields",
)

Arrays = dict[str, NDArray[Any]]


def pack(experiences: Sequence[Experience]) -> bytes:
    """One buffer for ``experiences``; :func:`unpack` is the inverse.

    Raises:
        ContractError: a field cannot be stored (e.g. ``info`` is not JSON); the message names it.
    """
    arrays: Arrays = {}
    tokens = [as_array("tokens", e.tokens, _INT32) for e in experiences]
    _pack_ragged(arrays, "tokens", tokens, _INT32, "cu_seqlens")
    for name, dtype in _SCALARS.items():
        arrays[name] = _column(name, [_scalar(e, name) for e in experiences], dtype)
    _check_rewards(arrays["reward"], experiences)
    segments = [_segments(e) for e in experiences]
    arrays["versions"] = np.concatenate(segments) if segments else np.zeros((0, 3), "<i8")
    arrays["versions.cu_seqlens"] = _offsets([len(segment) for segment in segments])
    for name, dtype in ARRAY_DTYPES.items():
        _pack_optional(arrays, name, [getattr(e, name) for e in experiences], dtype)
    for number, experience in enumerate(experiences):
        for key, value in (experience.multi_modal_inputs or {}).items():
            arrays[f"mm/{number}/{key}"] = _column(f"multi_modal_inputs[{key!r}]", value)
    try:
        items = orjson.dumps([_item(e) for e in experiences], option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise ContractError(f"an experience's info, metrics or messages: {error}") from error
    return _write(arrays, {"format": FORMAT, "schema_version": VERSION, "items": items.decode()})


def unpack(
    buffer: bytes | bytearray | memoryview, *, max_bytes: int = MAX_BYTES
) -> list[Experience]:
    """The experiences in ``buffer``; their arrays are views of it, not copies.

    Raises:
        ContractError: the buffer is malformed, truncated, too large, or of another format.
    """
    arrays, metadata = _read(buffer, max_bytes)
    size = _check(arrays)
    items = _items(metadata, size)
    modal = _multi_modal(arrays)
    try:
        return [
            _unpack_one(arrays, number, item, modal.get(str(number)))
            for number, item in enumerate(items)
        ]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ContractError(f"experiences: malformed item: {error}") from error


def count(buffer: bytes | bytearray | memoryview, *, max_bytes: int = MAX_BYTES) -> int:
    """N, the number of experiences in ``buffer``, without building them.

    Raises:
        ContractError: as :func:`unpack`.
    """
    arrays, _ = _read(buffer, max_bytes)
    return _check(arrays)


def unpack_arrays(buffer: bytes | bytearray | memoryview, *, max_bytes: int = MAX_BYTES) -> Arrays:
    """The packed arrays by name (see the module's table), as views of ``buffer``.

    Raises:
        ContractError: as :func:`unpack`.
    """
    arrays, _ = _read(buffer, max_bytes)
    _check(arrays)
    return arrays


def _scalar(experience: Experience, name: str) -> float | int:
    if name in ("run", "step"):
        value: float | int | None = getattr(experience.eid, name)
    else:
        value = getattr(experience, name)
    if value is None:
        return math.nan if name == "reward" else -1
    return value


def _column(name: str, values: Any, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype, order="C")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ContractError(f"{name} cannot be stored: {error}") from error


def _check_rewards(rewards: NDArray[Any], experiences: Sequence[Experience]) -> None:
    """NaN stands for "no reward", so a reward that is NaN would vanish."""
    for reward, experience in zip(np.isfinite(rewards), experiences, strict=True):
        if not reward and experience.reward is not None:
            raise ContractError(
                f"experience {experience.eid}: reward {experience.reward!r} is not a finite float32"
            )


def _segments(experience: Experience) -> NDArray[Any]:
    rows = _column("versions", experience.versions, _INT64)
    if rows.size and rows.shape[1:] != (3,):
        raise ContractError(f"experience {experience.eid}: versions is not rows of three")
    return rows.reshape(-1, 3)


def _item(experience: Experience) -> dict[str, Any]:
    eid = experience.eid
    for name, metric in experience.metrics.items():
        if isinstance(metric, (float, np.floating)) and not math.isfinite(metric):
            raise ContractError(f"experience {eid}: metric {name!r} is {metric}")
    item: dict[str, Any] = {
        "type": experience.experience_type,
        "batch": eid.batch,
        "task": eid.task,
        "suffix": eid.suffix,
    }
    for name in _ITEM_FIELDS:
        value = getattr(experience, name)
        if value not in (None, {}):
            item[name] = value
    return item


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, "<i8")
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _pack_ragged(
    arrays: Arrays, name: str, values: Sequence[NDArray[Any]], dtype: np.dtype[Any], cu: str
) -> None:
    arrays[cu] = _offsets([len(value) for value in values])
    try:
        joined = np.concatenate(values) if values else np.zeros(0, dtype)
    except ValueError as error:
        raise ContractError(f"{name}: shapes differ between samples: {error}") from error
    arrays[name] = np.ascontiguousarray(joined, dtype)


def _pack_optional(arrays: Arrays, name: str, fields: Sequence[Any], dtype: np.dtype[Any]) -> None:
    values = [None if value is None else as_array(name, value, dtype) for value in fields]
    given = [value for value in values if value is not None]
    if not given:
        return
    stored = np.dtype("u1") if dtype == np.bool_ else dtype
    empty = np.zeros((0, *given[0].shape[1:]), dtype)
    filled = [empty if value is None else value for value in values]
    _pack_ragged(arrays, name, filled, stored, f"{name}.cu_seqlens")
    if len(given) < len(values):
        arrays[f"{name}.present"] = np.array([value is not None for value in values], "u1")


def _write(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Largest items first and a header padded to 8 bytes: every tensor is aligned."""
    ordered = sorted(arrays.items(), key=lambda entry: (-entry[1].itemsize, entry[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, array in ordered:
        dtype = _NAMES.get(
            array.dtype.newbyteorder("<") if array.dtype.byteorder == "=" else array.dtype
        )
        if dtype is None:
            raise ContractError(f"{name}: dtype {array.dtype} cannot be stored")
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    pieces: list[Any] = [len(text).to_bytes(8, "little"), text]
    pieces.extend(array.reshape(-1).view(np.uint8).data for _, array in ordered if array.nbytes)
    return b"".join(pieces)


def _read(buffer: bytes | bytearray | memoryview, max_bytes: int) -> tuple[Arrays, dict[str, str]]:
    view = memoryview(buffer).toreadonly().cast("B")
    if len(view) > max_bytes:
        raise ContractError(f"experiences: {len(view)} bytes exceed the limit of {max_bytes}")
    if len(view) < 8:
        raise ContractError("experiences: the buffer is truncated")
    size = int.from_bytes(view[:8], "little")
    if size > len(view) - 8:
        raise ContractError("experiences: not a safetensors buffer, or truncated in its header")
    try:
        header = orjson.loads(bytes(view[8 : 8 + size]))
    except orjson.JSONDecodeError as error:
        raise ContractError(f"experiences: unreadable header: {error}") from error
    if not isinstance(header, dict):
        raise ContractError("experiences: the header is not an object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ContractError("experiences: the buffer is not of format " + FORMAT)
    if metadata.get("schema_version") != VERSION:
        raise ContractError(f"experiences: version {metadata.get('schema_version')!r} is unknown")
    return _tensors(header, view[8 + size :]), metadata


def _tensors(header: dict[str, Any], body: memoryview) -> Arrays:
    arrays: Arrays = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype = _DTYPES[entry["dtype"]]
            shape = tuple(entry["shape"])
            start, end = entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
                raise ContractError(f"experiences: {name}: negative or odd shape or offset")
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"experiences: {name}: malformed entry: {error}") from error
        length = math.prod(shape)
        if end - start != length * dtype.itemsize or end > len(body):
            raise ContractError(f"experiences: {name}: offsets do not fit shape or buffer")
        try:
            arrays[name] = np.frombuffer(body, dtype, length, start).reshape(shape)
            if dtype == np.bool_ and np.any(np.frombuffer(body, "u1", length, start) > 1):
                raise ContractError(f"experiences: {name}: a boolean is neither 0 nor 1")
        except (ValueError, OverflowError) as error:
            raise ContractError(f"experiences: {name}: impossible shape: {error}") from error
        spans.append((start, end))
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise ContractError("experiences: tensors overlap or leave gaps")
        at = end
    if at != len(body):
        raise ContractError("experiences: the buffer is truncated or has bytes left over")
    return arrays


def _check(arrays: Arrays) -> int:
    """Every invariant the readers rely on; returns N."""
    size = len(_need(arrays, "cu_seqlens", "<i8", 1)) - 1
    if size < 0:
        raise ContractError("experiences: cu_seqlens is empty")
    _check_offsets(arrays, "cu_seqlens", "tokens", _INT32, size)
    for name, dtype in _SCALARS.items():
        if len(_need(arrays, name, dtype, 1)) != size:
            raise ContractError(f"experiences: {name} does not have {size} entries")
    _check_offsets(arrays, "versions.cu_seqlens", "versions", _INT64, size, ndim=2)
    if arrays["versions"].shape[1] != 3:
        raise ContractError("experiences: versions is not [S, 3]")
    for name in ARRAY_DTYPES.keys() & arrays.keys():
        _check_optional(arrays, name, size)
    return size


def _check_optional(arrays: Arrays, name: str, size: int) -> None:
    flags = ARRAY_DTYPES[name] == np.bool_
    stored = np.dtype("u1") if flags else ARRAY_DTYPES[name]
    ndim = 3 if name == "routed_experts" else 1
    _check_offsets(arrays, f"{name}.cu_seqlens", name, stored, size, ndim=ndim)
    # Readers view these bytes as booleans, and numpy counts a boolean 2 wrongly.
    if flags and np.any(arrays[name] > 1):
        raise ContractError(f"experiences: {name} is neither 0 nor 1 somewhere")
    present = arrays.get(f"{name}.present")
    if present is not None and (present.dtype != np.uint8 or present.shape != (size,)):
        raise ContractError(f"experiences: {name}.present is malformed")


def _need(arrays: Arrays, name: str, dtype: Any, ndim: int) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None:
        raise ContractError(f"experiences: {name} is missing")
    if array.dtype != np.dtype(dtype) or array.ndim != ndim:
        raise ContractError(f"experiences: {name} is {array.dtype} {array.shape}")
    return array


def _check_offsets(
    arrays: Arrays, cu: str, name: str, dtype: np.dtype[Any], size: int, *, ndim: int = 1
) -> None:
    offsets = _need(arrays, cu, _INT64, 1)
    values = _need(arrays, name, dtype, ndim)
    fits = len(offsets) == size + 1
    if not fits or offsets[0] != 0 or offsets[-1] != len(values) or np.any(np.diff(offsets) < 0):
        raise ContractError(f"experiences: {cu} does not describe {name}")


def _items(metadata: Mapping[str, str], size: int) -> list[dict[str, Any]]:
    try:
        items = orjson.loads(metadata.get("items", ""))
    except (orjson.JSONDecodeError, TypeError) as error:
        raise ContractError(f"experiences: unreadable items: {error}") from error
    if not isinstance(items, list) or len(items) != size:
        raise ContractError(f"experiences: items does not have {size} entries")
    for item in items:
        if not isinstance(item, dict) or item.get("type") not in _TYPES:
            raise ContractError("experiences: an item is not an object of a known type")
        if not all(isinstance(item.get(name), (int, str)) for name in ("batch", "task", "suffix")):
            raise ContractError("experiences: an item's batch, task or suffix is not an id")
        if not all(isinstance(item.get(name, {}), dict) for name in ("info", "metrics")):
            raise ContractError("experiences: an item's info or metrics is not an object")
    return items


def _cut(arrays: Arrays, name: str, number: int, cu: str | None = None) -> NDArray[Any]:
    offsets = arrays[cu or f"{name}.cu_seqlens"]
    return arrays[name][offsets[number] : offsets[number + 1]]


def _multi_modal(arrays: Arrays) -> dict[str, Arrays]:
    """Multi-modal tensors by sample number (as text) and key."""
    found: dict[str, Arrays] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "mm":
            number, _, key = rest.partition("/")
            found.setdefault(number, {})[key] = array
    return found


def _unpack_one(
    arrays: Arrays, number: int, item: dict[str, Any], modal: Arrays | None
) -> Experience:
    optional: dict[str, Any] = {}
    for name, dtype in ARRAY_DTYPES.items():
        present = arrays.get(f"{name}.present")
        if name in arrays and (present is None or present[number]):
            value = _cut(arrays, name, number)
            optional[name] = value.view(np.bool_) if dtype == np.bool_ else value
    reward = float(arrays["reward"][number])
    start = int(arrays["policy_version_start"][number])
    end = int(arrays["policy_version_end"][number])
    return Experience(
        tokens=_cut(arrays, "tokens", number, "cu_seqlens"),
        prompt_length=int(arrays["prompt_length"][number]),
        eid=EID(
            item["batch"],
            item["task"],
            int(arrays["run"][number]),
            int(arrays["step"][number]),
            item["suffix"],
        ),
        experience_type=item["type"],
        reward=None if math.isnan(reward) else reward,
        multi_modal_inputs=modal,
        policy_version_start=None if start < 0 else start,
        policy_version_end=None if end < 0 else end,
        versions=tuple(VersionSegment(*row) for row in _cut(arrays, "versions", number).tolist()),
        **{name: item[name] for name in _ITEM_FIELDS if name in item},
        **optional,
    )
