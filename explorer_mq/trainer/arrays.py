"""Columns of a whole batch: packed buffers joined end to end, and their padded form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer_mq_schemas.codec import Arrays, pack, unpack_arrays

_SCALARS = ("prompt_length", "reward", "run", "step", "policy_version_start", "policy_version_end")
_MODAL = re.compile(r"mm/([0-9]+)/(.+)", re.DOTALL)
_PER_TOKEN = ("logprobs", "token_level_reward", "advantages", "returns", "teacher_logprobs")


def concatenate(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of ``parts`` as if one buffer had held all samples.

    Offsets become global, multi-modal tensors are renumbered, and an optional array that some
    samples lack gets its ``.present`` column.
    """
    parts = parts or [unpack_arrays(pack([]))]
    sizes = [len(part["prompt_length"]) for part in parts]
    joined: Arrays = {name: np.concatenate([part[name] for part in parts]) for name in _SCALARS}
    joined["cu_seqlens"] = _join_offsets([part["cu_seqlens"] for part in parts])
    joined["tokens"] = np.concatenate([part["tokens"] for part in parts])
    for name in _ragged_names(parts):
        _join_ragged(joined, name, parts, sizes)
    base = 0
    for part, size in zip(parts, sizes, strict=True):
        for key, array in part.items():
            modal = _MODAL.fullmatch(key)
            if modal:
                joined[f"mm/{base + int(modal[1])}/{modal[2]}"] = array
        base += size
    return joined


def pad(arrays: Arrays, *, pad_token_id: int = 0) -> Arrays:
    """Rectangular arrays of N samples, padded on the right to the longest (T tokens).

    Per-token values are aligned with the token they belong to: ``logprobs[i, t]`` is the
    log-probability with which ``tokens[i, t]`` was sampled, 0 where there is none.

    Shapes: tokens [N, T] int64; attention_mask [N, T] bool; action_mask [N, T] bool, true for
        tokens the policy is trained on; logprobs, advantages, ... [N, T] float32 where given;
        prompt_length, reward, task, ... [N] as in ``arrays``.
    """
    offsets = arrays["cu_seqlens"]
    lengths = np.diff(offsets)
    shape = (len(lengths), int(lengths.max(initial=0)))
    attention = np.arange(shape[1]) < lengths[:, None]
    padded: Arrays = {name: arrays[name] for name in (*_SCALARS, "task") if name in arrays}
    padded["tokens"] = np.full(shape, pad_token_id, np.int64)
    padded["tokens"][attention] = arrays["tokens"]
    padded["attention_mask"] = attention
    padded["action_mask"] = _align(arrays, "action_mask", shape).astype(np.bool_)
    for name in _PER_TOKEN:
        if name in arrays:
            padded[name] = _align(arrays, name, shape)
    return padded


def _ragged_names(parts: Sequence[Arrays]) -> list[str]:
    suffix = ".cu_seqlens"
    names = (key.removesuffix(suffix) for part in parts for key in part if key.endswith(suffix))
    return sorted(set(names))


def _join_ragged(joined: Arrays, name: str, parts: Sequence[Arrays], sizes: Sequence[int]) -> None:
    offsets, values, present = [], [], []
    for part, size in zip(parts, sizes, strict=True):
        here = part.get(f"{name}.present")
        if name in part:
            offsets.append(part[f"{name}.cu_seqlens"])
            if len(part[name]):
                values.append(part[name])
            present.append(np.ones(size, np.uint8) if here is None else here)
        else:
            offsets.append(np.zeros(size + 1, np.int64))
            present.append(np.zeros(size, np.uint8))
    # Parts without a value of this array may have lost its trailing shape: they add nothing.
    joined[name] = np.concatenate(values) if values else next(p[name] for p in parts if name in p)
    joined[f"{name}.cu_seqlens"] = _join_offsets(offsets)
    given = np.concatenate(present)
    if not given.all():
        joined[f"{name}.present"] = given


def _join_offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = np.concatenate([np.diff(part) for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _align(arrays: Arrays, name: str, shape: tuple[int, int]) -> NDArray[Any]:
    """Packed response values on the last R positions of each sample's tokens."""
    out: NDArray[Any] = np.zeros(shape, np.float32)
    if name not in arrays:
        return out
    ends = np.diff(arrays["cu_seqlens"])
    lengths = np.diff(arrays[f"{name}.cu_seqlens"])
    at = np.arange(shape[1])
    out[(at >= (ends - lengths)[:, None]) & (at < ends[:, None])] = arrays[name]
    return out
