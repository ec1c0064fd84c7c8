"""Weight files are understood without torch, and refused for the right reason."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from explorer_mq_schemas.errors import ContractError
from explorer_mq_workers.engines.checkpoint import Blueprint, digest, read_entries

SHAPES = {"a": (2, 3), "b": (4,)}
BITS = {
    "F64": (np.uint64, 0x7FEF_FFFF_FFFF_FFFF, 0xFFF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F7F_FFFF, 0x7FC0_0000),
    "F16": (np.uint16, 0x7BFF, 0xFC00),
    "BF16": (np.uint16, 0x7F7F, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7B, 0xFC),
    "F8_E4M3": (np.uint8, 0x7E, 0xFF),
}


def write(path, tensors):
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, path)
    return path


def write_raw(path, dtype, bits):
    body = bits.tobytes()
    header = {"x": {"dtype": dtype, "shape": [len(bits)], "data_offsets": [0, len(body)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_digest_is_that_of_the_file_and_of_files_in_order(tmp_path):
    one = write(tmp_path / "1.safetensors", {"a": (2, 3)})
    assert Blueprint({"a": (2, 3)}, has_tied_head=False).check(one) == digest(one)
    assert digest(one) == hashlib.sha256(one.read_bytes()).hexdigest()
    two = write(tmp_path / "2.safetensors", {"b": (4,)})
    both = hashlib.sha256(one.read_bytes() + two.read_bytes()).hexdigest()
    assert Blueprint(SHAPES, has_tied_head=False).check(tmp_path) == both


@pytest.mark.parametrize("dtype", BITS)
def test_value_that_is_not_finite_is_found_in_every_dtype(tmp_path, dtype):
    unsigned, largest, broken = BITS[dtype]
    blueprint = Blueprint({"x": (5,)}, has_tied_head=False)
    bits = np.full(5, largest, unsigned)
    assert blueprint.check(write_raw(tmp_path / "good.safetensors", dtype, bits))
    bits[4] = broken
    with pytest.raises(ContractError, match="NaN or infinity: x"):
        blueprint.check(write_raw(tmp_path / "bad.safetensors", dtype, bits))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": (2, 3)}, "missing: b"),
        ({**SHAPES, "c": (1,)}, "does not have: c"),
        ({**SHAPES, **{f"x{i}": (1,) for i in range(5)}}, "x0, x1, x2 and 2 more"),
        ({**SHAPES, "b": (5,)}, r"shape of b is \(5,\), the model has \(4,\)"),
        ({**SHAPES, "lm_head.weight": (1,)}, "does not have: lm_head"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, words):
    path = write(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ContractError, match=words):
        Blueprint(SHAPES, has_tied_head=False).check(path)


def test_tied_head_may_be_left_out_or_given(tmp_path):
    head = {"lm_head.weight": (4,)}
    with_head = write(tmp_path / "with.safetensors", {**SHAPES, **head})
    without = write(tmp_path / "without.safetensors", SHAPES)
    for shapes in (SHAPES, {**SHAPES, **head}):
        blueprint = Blueprint(shapes, has_tied_head=True)
        assert blueprint.check(with_head)
        assert blueprint.check(without)


@pytest.mark.parametrize("body", [b"", b"garbage", struct.pack("<Q", 1 << 60) + b"{}"])
def test_file_that_is_no_safetensors_is_unreadable(tmp_path, body):
    path = tmp_path / "w.safetensors"
    path.write_bytes(body)
    with pytest.raises(ContractError, match=r"unreadable weights: .*w\.safetensors"):
        read_entries(path)


def test_blueprint_of_a_model_reads_names_shapes_and_tying(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"tie_word_embeddings": true}}')
    with pytest.raises(ContractError, match="no safetensors file"):
        Blueprint.of_model(tmp_path)
    write(tmp_path / "model.safetensors", SHAPES)
    assert Blueprint.of_model(tmp_path) == Blueprint(SHAPES, has_tied_head=True)
