"""The real vLLM on the CPU: exact log-probabilities, weight updates in flight, death."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from explorer_mq.demo.model import write_tiny_model
from explorer_mq.settings import VllmSettings
from explorer_mq_schemas.errors import ConfigError, ContractError, TaskError
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.vllm import VllmEngine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(240),
]

PROMPT = [257, 82, 78, 81, 83, 256]
TOLERANCE = 1e-3


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, seed=0)
    return path


@pytest.fixture(scope="session")
def settings(model_dir):
    return VllmSettings(model=str(model_dir), dtype="float32", max_model_len=512)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(settings):
    started = VllmEngine(settings)
    await started.start()
    yield started
    await started.close()


@pytest.fixture(scope="session")
def policies(model_dir, tmp_path_factory):
    """Torch models by policy version, and the weight files that hold them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    found, files = {}, {}
    for version in range(3):
        torch.manual_seed(version)
        model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32).eval()
        if version:
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.02)
        found[version] = model
        files[version] = tmp_path_factory.mktemp("weights") / f"{version}.safetensors"
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, str(files[version]))
    return found, files


def reference(model, prompt, tokens):
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0].float()
    found = torch.log_softmax(logits, -1)
    start = len(prompt) - 1
    return np.array([found[start + i, token].item() for i, token in enumerate(tokens)])


def worst(models, completion):
    """Largest difference to a torch forward pass, each segment under its own version."""
    tokens = completion.token_ids.tolist()
    assert completion.versions[0].start == 0
    assert completion.versions[-1].end == len(tokens)
    differences = [
        np.abs(
            reference(models[version], PROMPT, tokens)[start:end] - completion.logprobs[start:end]
        ).max()
        for version, start, end in completion.versions
    ]
    return max(differences)


async def test_logprobs_equal_a_torch_forward(engine, policies):
    models, _ = policies
    version = engine.policy_version
    found = await engine.generate(PROMPT, GenerationConfig(n=4, max_tokens=40, ignore_eos=True))
    assert [len(one.token_ids) for one in found] == [40] * 4
    assert {segment.version for one in found for segment in one.versions} == {version}
    assert max(worst(models, one) for one in found) < TOLERANCE


async def test_update_in_flight_keeps_generations_and_stamps_versions(engine, policies):
    models, files = policies
    config = GenerationConfig(max_tokens=400, ignore_eos=True)
    before = engine.policy_version
    running = [asyncio.create_task(engine.generate(PROMPT, config)) for _ in range(8)]
    probe = await engine.generate(PROMPT, GenerationConfig(max_tokens=20, ignore_eos=True))
    assert len(probe[0].token_ids) == 20
    await engine.load_policy(1, files[1])
    assert engine.policy_version == 1
    found = [one for task in running for one in await task]
    assert [len(one.token_ids) for one in found] == [400] * 8
    assert all([s.version for s in one.versions] == [before, 1] for one in found)
    assert max(worst(models, one) for one in found) < TOLERANCE
    (after,) = await engine.generate(PROMPT, GenerationConfig(max_tokens=20, ignore_eos=True))
    assert after.versions == ((1, 0, 20),)
    assert worst(models, after) < TOLERANCE


async def test_bad_weights_are_refused_and_the_engine_is_unharmed(engine, policies, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    models, files = policies
    version = engine.policy_version
    good = load_file(str(files[2]))
    name = next(iter(good))
    cases = {
        "missing": {k: v for k, v in good.items() if k != name},
        "does not have": {**good, "extra": torch.zeros(1)},
        "shape": {**good, name: torch.zeros(3)},
        "NaN": {**good, name: torch.full_like(good[name], float("nan"))},
    }
    for words, state in cases.items():
        path = tmp_path / "bad.safetensors"
        save_file(state, str(path))
        with pytest.raises(ContractError, match=words):
            await engine.load_policy(99, path)
    path.write_bytes(b"garbage")
    with pytest.raises(ContractError, match="unreadable"):
        await engine.load_policy(99, path)
    assert engine.policy_version == version
    (one,) = await engine.generate(PROMPT, GenerationConfig(max_tokens=20, ignore_eos=True))
    assert worst(models, one) < TOLERANCE


async def test_bad_requests_are_the_tasks_fault(engine):
    make = partial(GenerationConfig, max_tokens=4)
    with pytest.raises(TaskError, match="empty"):
        await engine.generate([], make())
    with pytest.raises(TaskError, match="512"):
        await engine.generate([1] * 600, make())
    with pytest.raises(TaskError):
        await engine.generate([99_999], make())
    assert await engine.generate(PROMPT, make())


async def test_cancelled_request_is_aborted_in_the_engine(engine):
    config = GenerationConfig(max_tokens=400, ignore_eos=True)
    task = asyncio.create_task(engine.generate(PROMPT, config))
    await engine.generate(PROMPT, GenerationConfig(max_tokens=4, ignore_eos=True))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await engine.generate(PROMPT, GenerationConfig(max_tokens=4, ignore_eos=True))


async def test_missing_model_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"worker\.engine\.model: .*no-such"):
        await VllmEngine(VllmSettings(model=str(tmp_path / "no-such"))).start()


_HOST = """
import asyncio, sys
from explorer_mq.settings import VllmSettings
from explorer_mq_workers.engines.vllm import VllmEngine

async def main():
    engine = VllmEngine(VllmSettings(model=sys.argv[1], dtype="float32", max_model_len=128))
    await engine.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_engine_core_does_not_outlive_a_killed_worker(model_dir, tmp_path):
    script = tmp_path / "host.py"
    script.write_text(_HOST)
    command = [sys.executable, str(script), str(model_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        assert any("ready" in line for line in host.stdout)
        children = psutil.Process(host.pid).children(recursive=True)
        assert children
        host.send_signal(signal.SIGKILL)
        host.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, Path(alive[0].exe())
