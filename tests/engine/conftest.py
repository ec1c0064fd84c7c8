"""One vLLM engine for all engine tests, and torch models to compare it with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from explorer_mq.demo.model import write_tiny_model
from explorer_mq.settings import VllmSettings
from explorer_mq_workers.engines import vllm_api
from explorer_mq_workers.engines.protocol import Completion
from explorer_mq_workers.engines.vllm import VllmEngine

# Warnings of vLLM, torch and what they import; ours stay errors.
_FOREIGN_WARNINGS = (
    "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning",
    "ignore:max_rollback_tokens is deprecated:DeprecationWarning",  # xgrammar, in the forked core
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for rule in _FOREIGN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(scope="session")
def cpu_environment() -> Iterator[None]:
    """Settings that torch reads when it is imported; the rest of the tests keeps its own."""
    before = dict(os.environ)
    vllm_api.prepare_environment()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def model_dir(cpu_environment, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, seed=0)
    return path


@pytest.fixture(scope="session")
def settings(model_dir) -> VllmSettings:
    return VllmSettings(model=model_dir, dtype="float32", max_model_len=512)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(settings):
    started = VllmEngine(settings)
    await started.start()
    yield started
    await started.close()


@dataclass(frozen=True)
class Policies:
    """Policy versions as weight files and as torch models; version 0 is the start checkpoint."""

    model_dir: Path
    weights_dir: Path
    models: dict[int, object]

    def file(self, version: int) -> Path:
        """Weights of ``version``: those of version 0 with noise on them."""
        path = self.weights_dir / f"{version}.safetensors"
        if not path.exists():
            self.model(version)
        return path

    def model(self, version: int):
        """The torch model of ``version``."""
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM

        if version not in self.models:
            torch.manual_seed(version)
            model = AutoModelForCausalLM.from_pretrained(self.model_dir, dtype=torch.float32)
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter) * (0.02 if version else 0.0))
            state = {name: value.clone() for name, value in model.state_dict().items()}
            save_file(state, self.weights_dir / f"{version}.safetensors")
            self.models[version] = model.eval()
        return self.models[version]

    def worst(
        self, prompt: Sequence[int], completion: Completion, *, temperature: float = 1.0
    ) -> float:
        """Largest difference to a torch forward, each segment under the version it names."""
        tokens = completion.token_ids.tolist()
        assert len(completion.logprobs) == len(tokens)
        starts = [segment.start for segment in completion.versions]
        ends = [segment.end for segment in completion.versions]
        assert [0, *ends] == [*starts, len(tokens)]
        return max(
            float(
                np.abs(
                    forward(self.model(version), prompt, tokens, temperature)[start:end]
                    - completion.logprobs[start:end]
                ).max()
            )
            for version, start, end in completion.versions
        )


def forward(model, prompt: Sequence[int], tokens: Sequence[int], temperature: float):
    """Log-probabilities of ``tokens`` after ``prompt`` from one pass of the torch model."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0].float() / temperature
    found = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return found.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()


@pytest.fixture(scope="session")
def make_policies(tmp_path_factory) -> Callable[[Path], Policies]:
    return lambda model_dir: Policies(model_dir, tmp_path_factory.mktemp("weights"), {})


@pytest.fixture(scope="session")
def policies(make_policies, model_dir) -> Policies:
    return make_policies(model_dir)
