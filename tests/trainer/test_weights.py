from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import numpy as st_numpy
from safetensors import torch as st_torch

from explorer_mq.trainer.weights import fingerprint, pack_weights
from explorer_mq_schemas.errors import ContractError


def test_weights_round_trip_through_the_safetensors_library():
    tied = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    state = {
        "embed": tied,
        "head": tied,
        "transposed": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
        "slice": torch.arange(10, dtype=torch.float16)[::3],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "scale": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.ones(2, requires_grad=True)),
    }
    loaded = st_torch.load(bytes(pack_weights(state)))
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].float(), tensor.detach().float())


def test_weights_accept_numpy_of_any_byte_order():
    state = {"a": np.arange(4, dtype=">f4").reshape(2, 2), "b": np.arange(6).reshape(2, 3).T}
    loaded = st_numpy.load(bytes(pack_weights(state)))
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_weights_have_one_fingerprint_whatever_the_order():
    one, two = torch.ones(3), torch.zeros(2, dtype=torch.bfloat16)
    first = fingerprint(pack_weights({"one": one, "two": two}))
    assert fingerprint(pack_weights({"two": two.clone(), "one": one})) == first
    assert fingerprint(pack_weights({"one": one + 1, "two": two})) != first


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([float("inf")], dtype=torch.bfloat16),
        torch.tensor([float("nan")]).to(torch.float8_e5m2),
        np.array([np.nan]),
        np.array([1.0, -np.inf], np.float16),
    ],
)
def test_weights_refuse_what_is_not_finite(bad):
    with pytest.raises(ContractError, match=r"layer\.3.*NaN"):
        pack_weights({"fine": torch.ones(1), "layer.3": bad})


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "empty"),
        ({"x": 3.0}, "x is a float"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"x": torch.ones(2, device="meta")}, "dense"),
        ({"x": torch.eye(2).to_sparse()}, "dense"),
        ({"__metadata__": torch.ones(1)}, "__metadata__"),
    ],
)
def test_weights_refuse_what_cannot_be_stored(state, text):
    with pytest.raises(ContractError, match=text):
        pack_weights(state)


def test_explorer_mq_imports_nothing_heavy_until_a_client_is_used():
    code = (
        "import sys, explorer_mq\n"
        "heavy = {'torch', 'vllm', 'nats', 'numpy', 'pydantic'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "explorer_mq.TrainerClient, explorer_mq.SyncTrainerClient\n"
        "heavy = {'torch', 'vllm', 'safetensors'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
