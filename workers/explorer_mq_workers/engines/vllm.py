"""vLLM's AsyncLLM in the worker's process; its engine core is a child that dies with it.

Everything that depends on vLLM's version is in this file and in ``vllm_extension``. Numbers behind
the CPU settings: start 13 s instead of 31 s, and no thrashing of OpenMP threads on small hosts.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from explorer_mq.settings import VllmSettings
from explorer_mq_schemas.errors import ConfigError, ContractError, EngineError, TaskError
from explorer_mq_schemas.experiences import VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.protocol import Completion, FinishReason

_EXTENSION = "explorer_mq_workers.engines.vllm_extension.WeightLoader"
_PARENT_VARIABLE = "EXMQ_ENGINE_PARENT"
_CPU_KV_BYTES = 64 << 20
_HEALTH_S = 1.0
_CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


class HuggingFaceTokenizer:
    """The model's own tokenizer."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""
        found: int | None = self._inner.eos_token_id
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens added."""
        return list(self._inner.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids``, without special tokens."""
        return str(self._inner.decode(list(token_ids), skip_special_tokens=True))

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, ready for the next answer."""
        text = self._inner.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return self.encode(text)


class VllmEngine:
    """Implements the engine protocol with vLLM 0.32 or 0.33."""

    name = "vllm"

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self._llm: Any = None
        self._tokenizer: HuggingFaceTokenizer | None = None
        self._versioned = False
        self._ids = itertools.count()
        self._swap = asyncio.Lock()
        self.policy_version = 0
        self.max_model_tokens = 0
        self.generated_tokens = 0

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            raise EngineError("the engine is not started")
        return self._tokenizer

    async def start(self) -> None:
        """Load the model; call it on the main thread, before any torch work in this process.

        Raises:
            ConfigError: no model directory, vLLM not installed or not loadable.
        """
        model = Path(self._settings.model)
        if not self._settings.model or not (model / "config.json").is_file():
            raise ConfigError(
                f"worker.engine.model: {str(model)!r} is not a model directory (no config.json); "
                "give the path of a checkpoint in Hugging Face layout"
            )
        _set_environment()
        async_llm, engine_args, platform = _import_vllm()
        arguments = self._arguments(is_cpu=platform.is_cpu())
        config = engine_args(**arguments).create_engine_config()
        if platform.is_cpu():
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        self._llm = async_llm.from_vllm_config(config, disable_log_stats=True)
        self.max_model_tokens = int(config.model_config.max_model_len)
        self._tokenizer = HuggingFaceTokenizer(_tokenizer_of(str(model)))
        await self._label(0)

    async def close(self) -> None:
        """End the engine core."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    async def generate(
        self, prompt_token_ids: Sequence[int], config: GenerationConfig, *, priority: int = 0
    ) -> list[Completion]:
        """``config.n`` answers; see the protocol."""
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        tokens = list(prompt_token_ids)
        if not tokens:
            raise TaskError("the prompt is empty")
        if len(tokens) >= self.max_model_tokens:
            raise TaskError(
                f"the prompt has {len(tokens)} tokens, the model takes {self.max_model_tokens} "
                "with the answer"
            )
        final: Any = None
        try:
            async for final in self._llm.generate(  # noqa: B007 - the last one counts
                tokens_input(prompt_token_ids=tokens),
                _sampling(config),
                f"exmq-{os.getpid()}-{next(self._ids)}",
                priority=priority,
            ):
                pass
        except EngineDeadError as error:
            raise EngineError("the vLLM engine died; see its log above") from error
        except EngineGenerateError as error:
            raise EngineError(f"vLLM failed on a request: {error}") from error
        except (ValueError, VLLMValidationError) as error:
            raise TaskError(f"vLLM refuses the request: {error}") from error
        if final is None:
            raise EngineError("vLLM ended a request without an answer")
        found = [self._completion(output) for output in final.outputs]
        self.generated_tokens += sum(len(one.token_ids) for one in found)
        return found

    async def load_policy(self, version: int, path: Path) -> None:
        """Swap the weights with running generations kept: pause, load, resume.

        Caches are cleared inside the pause: keys and values of the old weights would spoil every
        token after it (measured error 0.2 to 0.3 in log-probability).
        """
        async with self._swap:
            wanted = await asyncio.to_thread(_sha256, path)
            await self._llm.pause_generation(mode="keep", clear_cache=True)
            try:
                replies = await self._llm.collective_rpc(
                    "exmq_load_policy", args=(version, str(path))
                )
                _check_replies(replies, version, wanted)
                await self._label(version)
                self.policy_version = version
            finally:
                await self._llm.resume_generation()

    async def wait_dead(self) -> str:
        """Wait for vLLM's own death notice."""
        handler: asyncio.Task[None] | None = getattr(self._llm, "output_handler", None)
        if handler is None:
            raise EngineError("this vLLM has no output handler to watch; use 0.32 or 0.33")
        await asyncio.wait([handler])
        return "the vLLM engine died; see its log above"

    async def _label(self, version: int) -> None:
        """VLLM stamps tokens with this label (0.32 and later)."""
        update = getattr(self._llm, "update_weight_version", None)
        if update is not None:
            await update(str(version))
            self._versioned = True

    def _arguments(self, *, is_cpu: bool) -> dict[str, Any]:
        settings = self._settings
        optional: dict[str, Any] = {
            "max_model_len": settings.max_model_len,
            "block_size": settings.block_size or (32 if is_cpu else None),
            "kv_cache_memory_bytes": settings.kv_cache_bytes or (_CPU_KV_BYTES if is_cpu else None),
            "enforce_eager": is_cpu if settings.enforce_eager is None else settings.enforce_eager,
        }
        if not is_cpu:
            optional["gpu_memory_utilization"] = settings.gpu_memory_utilization
        return {
            "model": settings.model,
            "dtype": settings.dtype,
            "max_num_seqs": settings.max_num_seqs,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "seed": settings.seed,
            "logprobs_mode": settings.logprobs_mode,
            "worker_extension_cls": _EXTENSION,
            "disable_log_stats": True,
            **{name: value for name, value in optional.items() if value is not None},
            **settings.extra_args,
        }

    def _completion(self, output: Any) -> Completion:
        tokens = np.array(output.token_ids, np.int32)
        entries = output.logprobs or []
        logprobs = np.array(
            [entry[token].logprob for entry, token in zip(entries, output.token_ids, strict=False)],
            np.float32,
        )
        reason: FinishReason = output.finish_reason or "abort"
        return Completion(tokens, logprobs, reason, self._segments(output), output.text)

    def _segments(self, output: Any) -> tuple[VersionSegment, ...]:
        spans = getattr(output, "weight_versions", None) if self._versioned else None
        if spans:
            return tuple(VersionSegment(int(s.version), int(s.start), int(s.end)) for s in spans)
        return (VersionSegment(self.policy_version, 0, len(output.token_ids)),)


def _sampling(config: GenerationConfig) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            n=config.n,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_tokens=config.max_tokens or 16,
            min_tokens=config.min_tokens,
            stop=list(config.stop) or None,
            stop_token_ids=list(config.stop_token_ids) or None,
            seed=config.seed,
            ignore_eos=config.ignore_eos,
            logprobs=0 if config.logprobs else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **config.extra,
        )
    except (TypeError, ValueError) as error:
        raise TaskError(f"rollout_args: {error}") from error


def _check_replies(replies: Sequence[dict[str, Any]], version: int, sha256: str) -> None:
    """Every engine process says what it holds; the announced version must be the loaded one."""
    for reply in replies:
        if "refused" in reply:
            raise ContractError(f"policy version {version} refused: {reply['refused']}")
        if reply.get("version") != version or reply.get("sha256") != sha256:
            raise EngineError(f"the engine holds {reply} after loading policy version {version}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer_of(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True)


def _set_environment() -> None:
    """Before vLLM is imported; what the user has set stays. CPU knobs only without a GPU."""
    wanted = dict(_ENVIRONMENT)
    if importlib.util.find_spec("vllm") is not None and not Path("/dev/nvidiactl").exists():
        wanted.update(_CPU_ENVIRONMENT)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    os.environ[_PARENT_VARIABLE] = str(os.getpid())


def _import_vllm() -> tuple[Any, Any, Any]:
    try:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ConfigError(
            "vLLM is not installed; install `explorer-mq[gpu]`, or `explorer-mq[cpu]` without a GPU"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"vLLM cannot be imported ({error}); if torchvision, torchaudio or torchcodec do not "
            "fit this torch, remove them: pip uninstall -y torchvision torchaudio torchcodec"
        ) from error
    return AsyncLLM, AsyncEngineArgs, current_platform
