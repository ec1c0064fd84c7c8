"""Settings of the inference engines: one variant per engine, told apart by ``type``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from explorer_mq.settings.section import Section

DEFAULT_ENGINE = "vllm"


class VllmSettings(Section):
    """vLLM inside the worker process; what is not named here goes through ``extra_args``."""

    type: Literal["vllm"] = Field(default="vllm", description="the engine: vllm or synthetic")
    model: Path | str = Field(
        default="", description="checkpoint directory or Hugging Face name; a worker needs one"
    )
    dtype: str = Field(default="auto", description="data type of the weights, e.g. float32")
    max_model_len: int | None = Field(
        default=None, ge=1, description="longest prompt plus answer in tokens; default the model's"
    )
    max_num_seqs: int = Field(default=256, ge=1, description="sequences decoded at once")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of the GPU's memory that vLLM may take"
    )
    kv_cache_bytes: int | None = Field(
        default=None, ge=1, description="size of the KV cache; default what is left, 256 MiB on CPU"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs one engine spans")
    seed: int = Field(default=0, description="seed of the sampler")
    enforce_eager: bool | None = Field(
        default=None, description="skip graph capture; default only on CPU"
    )
    block_size: int | None = Field(
        default=None, ge=1, description="tokens per KV-cache block; default vLLM's"
    )
    logprobs_mode: str = Field(
        default="processed_logprobs",
        description="which log-probabilities are recorded; trainers need the sampling ones",
    )
    extra_args: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of vLLM's AsyncEngineArgs, by name"
    )


class SyntheticSettings(Section):
    """No model: random tokens after a configurable time, for scale tests and benchmarks."""

    type: Literal["synthetic"] = Field(
        default="synthetic", description="the engine: vllm or synthetic"
    )
    latency_s: float = Field(default=0.0, ge=0, description="time one completion takes")
    latency_jitter: float = Field(
        default=0.0, ge=0, le=1, description="random share by which the latency varies"
    )
    tokens: int = Field(default=8, ge=1, description="tokens per completion")
    vocab_size: int = Field(default=256, ge=2, description="number of distinct token ids")
    seed: int = Field(default=0, description="seed of tokens, latency and failures")
    fail_rate: float = Field(default=0.0, ge=0, le=1, description="share of requests that fail")


def _variant(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type", DEFAULT_ENGINE))
    return str(getattr(value, "type", DEFAULT_ENGINE))


EngineSettings = Annotated[
    Annotated[VllmSettings, Tag("vllm")] | Annotated[SyntheticSettings, Tag("synthetic")],
    Discriminator(_variant),
]
"""The engine of a worker; ``vllm`` when ``type`` is not given."""
