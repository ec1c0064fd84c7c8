"""Weight files on disk: what they hold, whether they fit a model, and their digest. No torch.

A file is checked here, in the worker, while the engine goes on generating. vLLM itself checks too
late: a wrong shape or an unreadable file leaves half of the model without memory and kills the
engine at its next step, and a file with tensors missing is taken without a word.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError, safe_open

from explorer_mq_schemas.errors import ContractError

_SHOWN = 3
_CHUNK_ITEMS = 4 << 20
_TIED_HEAD = "lm_head.weight"

# Unsigned type and exponent bits by dtype: a float is not finite when all exponent bits are set.
_EXPONENTS: Mapping[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),  # has no infinity; NaN is every bit but the sign
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a safetensors file: ``size_bytes`` bytes from offset ``start`` of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def weight_files(path: Path) -> tuple[Path, ...]:
    """``path`` itself, or the safetensors files of a checkpoint directory, sorted by name.

    Raises:
        ContractError: there are none.
    """
    if path.is_dir():
        files = tuple(sorted(path.glob("*.safetensors")))
    else:
        files = (path,) if path.is_file() else ()
    if not files:
        raise ContractError(f"unreadable weights: {path} has no safetensors file")
    return files


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a file or checkpoint directory, by name.

    Raises:
        ContractError: a file cannot be read, or is no valid safetensors file.
    """
    entries: dict[str, TensorEntry] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="np"):  # checks sizes, offsets and dtypes
                pass
            entries |= _entries_of(file)
        except (OSError, SafetensorError) as error:
            raise ContractError(f"unreadable weights: {file}: {error}") from error
    return entries


def _entries_of(file: Path) -> dict[str, TensorEntry]:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return {
        name: TensorEntry(
            file=file,
            dtype=tensor["dtype"],
            shape=tuple(tensor["shape"]),
            start=8 + size + tensor["data_offsets"][0],
            size_bytes=tensor["data_offsets"][1] - tensor["data_offsets"][0],
        )
        for name, tensor in header.items()
    }


def digest(path: Path) -> str:
    """SHA-256 in hex over the weight files of ``path``, in order of their names."""
    found = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    for file in weight_files(path):
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                found.update(buffer[:size])
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Names and shapes an engine's weights must have: those of the checkpoint it started from.

    When the output head is tied to the embeddings, files may hold it or leave it out: checkpoints
    usually do not have it, the state of a torch model does.
    """

    shapes: Mapping[str, tuple[int, ...]]
    has_tied_head: bool

    @classmethod
    def of_model(cls, model: Path) -> Self:
        """The blueprint of a checkpoint directory.

        Raises:
            ContractError: it has no safetensors files, or they cannot be read.
        """
        config = json.loads((model / "config.json").read_text())
        text_config = config.get("text_config", {})
        entries = read_entries(model)
        return cls(
            {name: entry.shape for name, entry in entries.items()},
            bool(config.get("tie_word_embeddings", text_config.get("tie_word_embeddings", False))),
        )

    def check(self, path: Path) -> str:
        """The digest of the weights at ``path``, which fit this blueprint and are finite.

        Raises:
            ContractError: names or shapes differ, or a value is NaN or infinite; says which.
        """
        entries = read_entries(path)
        self._check_names({name: entry.shape for name, entry in entries.items()})
        broken = [name for name, entry in entries.items() if not _is_finite(entry)]
        if broken:
            raise ContractError(f"weights with NaN or infinity: {_some(broken)}")
        return digest(path)

    def _check_names(self, given: Mapping[str, tuple[int, ...]]) -> None:
        optional = {_TIED_HEAD} if self.has_tied_head else set()
        missing = self.shapes.keys() - given.keys() - optional
        extra = given.keys() - self.shapes.keys() - optional
        if missing:
            raise ContractError(f"weights missing: {_some(missing)}")
        if extra:
            raise ContractError(f"weights the model does not have: {_some(extra)}")
        for name in sorted(given.keys() & self.shapes.keys()):
            if given[name] != self.shapes[name]:
                raise ContractError(
                    f"the shape of {name} is {given[name]}, the model has {self.shapes[name]}"
                )


def _is_finite(entry: TensorEntry) -> bool:
    if entry.dtype not in _EXPONENTS or not entry.size_bytes:
        return True
    unsigned, exponent = _EXPONENTS[entry.dtype]
    mask = unsigned(exponent)
    bits = np.memmap(entry.file, np.uint8, "r", entry.start, (entry.size_bytes,)).view(unsigned)
    return not any(
        ((bits[first : first + _CHUNK_ITEMS] & mask) == mask).any()
        for first in range(0, len(bits), _CHUNK_ITEMS)
    )


def _some(names: set[str] | list[str]) -> str:
    """The first names in order and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _SHOWN
    return ", ".join(ordered[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
