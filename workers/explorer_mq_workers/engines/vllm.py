"""vLLM's AsyncLLM inside the worker; its engine core is a child process that dies with the worker.

Life: :meth:`VllmEngine.start` -> requests and weight updates -> :meth:`VllmEngine.close`. Invariants:

- ``policy_version`` is a version whose file every engine process has confirmed by its digest, and
  which the engine itself reports as label; tokens carry that label from vLLM's own bookkeeping.
- Weights that do not fit are refused before the engine is touched. Once it is touched an update
  either succeeds or the engine is killed: nothing is ever sampled from unknown weights.
- A dead engine fails its requests and resolves :meth:`VllmEngine.wait_dead`; it is not restarted.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from explorer_mq.settings import VllmSettings
from explorer_mq_schemas.errors import ConfigError, EngineError, TaskError
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines import vllm_api
from explorer_mq_workers.engines.checkpoint import Blueprint
from explorer_mq_workers.engines.children import WatchedChild, end_all
from explorer_mq_workers.engines.huggingface import HuggingFaceTokenizer
from explorer_mq_workers.engines.protocol import Completion

logger = logging.getLogger(__name__)

_SWAP_TIMEOUT_S = 600.0
_CLOSE_GRACE_S = 10.0


class VllmEngine:
    """Implements the engine protocol with vLLM 0.32 or 0.33."""

    name = "vllm"

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self._llm: Any = None
        self._model = Path()
        self._tokenizer: HuggingFaceTokenizer | None = None
        self._blueprint: Blueprint | None = None
        self._children: tuple[WatchedChild, ...] = ()
        self._dead: asyncio.Future[str] | None = None
        self._requests: dict[asyncio.Task[Any], str] = {}
        self._numbers = itertools.count()
        self._swap = asyncio.Lock()
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self.policy_version = 0
        self.max_model_tokens = 0
        self.generated_tokens = 0

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The model's tokenizer.

        Raises:
            EngineError: the engine is not started.
        """
        if self._tokenizer is None:
            raise EngineError("the engine is not started")
        return self._tokenizer

    @property
    def running_requests(self) -> int:
        """Calls of :meth:`generate` in progress."""
        return len(self._requests)

    @property
    def paused_s(self) -> float:
        """Seconds in all that weight updates held generation up, one in progress included."""
        now = time.monotonic()
        return self._paused_s + (now - self._paused_at if self._paused_at is not None else 0.0)

    async def start(self) -> None:
        """Load the model; blocks the event loop for that time.

        Call it on the main thread, because the engine core lives only as long as the thread that
        started it, and before any torch work in this process: on CPUs the core is a fork of it.

        Raises:
            ConfigError: no model directory, vLLM missing or broken, or settings it refuses.
            EngineError: the engine core did not come up.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("the vLLM engine must be started on the main thread")
        self._model = find_model(self._settings.model)
        vllm_api.prepare_environment()
        vllm_api.import_vllm()
        self._tokenizer = HuggingFaceTokenizer.of_model(self._model)
        self._llm, processes = vllm_api.launch(self._settings, self._model)
        self._dead = asyncio.get_running_loop().create_future()
        self._children = tuple(WatchedChild(process) for process in processes)
        for child in self._children:
            child.ended.add_done_callback(lambda ended: self._die(ended.result()))
        self.max_model_tokens = int(self._llm.model_config.max_model_len)
        await vllm_api.call(self._llm, "exmq_attach")
        await vllm_api.stamp(self._llm, self.policy_version)
        logger.info(
            "engine=vllm model=%s max_model_tokens=%d pids=%s",
            self._model,
            self.max_model_tokens,
            ",".join(str(child.pid) for child in self._children),
        )

    async def close(self) -> None:
        """End the engine core; requests in progress fail with EngineError. Safe to call twice."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if not self._is_dead and self._requests:
            await llm.abort(list(self._requests.values()))
        await vllm_api.shut_down(llm)
        await end_all(self._children, grace_s=_CLOSE_GRACE_S)

    async def generate(
        self, prompt_token_ids: Sequence[int], config: GenerationConfig, *, priority: int = 0
    ) -> list[Completion]:
        """``config.n`` answers, see the protocol; a lower ``priority`` is served sooner."""
        llm = self._alive()
        token_ids = self._checked_prompt(prompt_token_ids)
        params = vllm_api.sampling_params(config)
        held = self.policy_version
        request_id = f"exmq-{next(self._numbers)}"
        task = asyncio.current_task()
        assert task is not None
        self._requests[task] = request_id
        try:
            final = await vllm_api.request(llm, token_ids, params, request_id, priority)
        finally:
            self._requests.pop(task, None)
        self._alive()
        found = [vllm_api.completion(output, held=held) for output in final.outputs]
        self.generated_tokens += sum(len(one.token_ids) for one in found)
        return found

    def tokens_of(self, request: asyncio.Task[Any]) -> int | None:
        """Tokens sampled so far for the call of :meth:`generate` that runs in ``request``."""
        request_id = self._requests.get(request)
        if request_id is None:
            return 0
        return vllm_api.sampled_tokens(self._llm, request_id)

    async def load_policy(self, version: int, path: Path) -> None:
        """Swap in the weights at ``path``, see the protocol; cancelling waits for the swap to end.

        Generations are paused at a step, not ended. Their keys and values are computed anew from
        the new weights, else they would spoil every token to come (measured error 0.2 to 0.3 in
        log-probability); the same goes for cached prefixes.
        """
        async with self._swap:
            self._alive()
            if self._blueprint is None:
                self._blueprint = await asyncio.to_thread(Blueprint.of_model, self._model)
            digest = await asyncio.to_thread(self._blueprint.check, path)
            swap = asyncio.create_task(
                self._apply(version, path, digest), name=f"policy version {version}"
            )
            try:
                await asyncio.shield(swap)
            except asyncio.CancelledError:
                await asyncio.gather(swap, return_exceptions=True)
                raise

    async def wait_dead(self) -> str:
        """Wait until the engine has died, and say why.

        Raises:
            EngineError: the engine is not started.
        """
        if self._dead is None:
            raise EngineError("the engine is not started")
        return await asyncio.shield(self._dead)

    async def _apply(self, version: int, path: Path, digest: str) -> None:
        swap = asyncio.create_task(self._exchange(version, path, digest), name="weight exchange")
        first: list[asyncio.Future[Any]] = [swap, *(child.ended for child in self._children)]
        try:
            async with asyncio.timeout(_SWAP_TIMEOUT_S):
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not swap.done():
                raise EngineError("an engine process ended meanwhile")
            swap.result()
        except Exception as error:  # whatever it was, the weights are unknown now
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            self._die(f"loading policy version {version} failed half way: {cause}")
            raise EngineError(f"policy version {version} ended the vLLM engine: {cause}") from error
        finally:
            swap.cancel()
            await asyncio.gather(swap, return_exceptions=True)

    async def _exchange(self, version: int, path: Path, digest: str) -> None:
        """Pause, load, verify, label, resume."""
        llm = self._alive()
        wanted = {"version": version, "sha256": digest}
        self._paused_at = time.monotonic()
        try:
            await llm.pause_generation(mode="keep", clear_cache=True)
            for held in await vllm_api.call(llm, "exmq_load_policy", version, str(path)):
                if held != wanted:
                    raise EngineError(f"an engine process holds {held} instead of {wanted}")
            await vllm_api.stamp(llm, version)
            self.policy_version = version
            await llm.resume_generation()
        finally:
            self._paused_s, self._paused_at = self.paused_s, None

    def _checked_prompt(self, prompt_token_ids: Sequence[int]) -> list[int]:
        token_ids = [int(token) for token in prompt_token_ids]
        if not token_ids:
            raise TaskError("the prompt is empty")
        if len(token_ids) >= self.max_model_tokens:
            raise TaskError(
                f"the prompt has {len(token_ids)} tokens and leaves no room for an answer within "
                f"the {self.max_model_tokens} of worker.engine.max_model_len; shorten it or raise "
                "that"
            )
        return token_ids

    def _alive(self) -> Any:
        if self._is_dead:
            raise EngineError(f"the vLLM engine is dead: {self._cause}")
        if self._llm is None:
            raise EngineError("the vLLM engine is closed or was not started")
        return self._llm

    @property
    def _is_dead(self) -> bool:
        return self._dead is not None and self._dead.done()

    @property
    def _cause(self) -> str:
        return self._dead.result() if self._dead is not None and self._dead.done() else ""

    def _die(self, cause: str) -> None:
        """Record the first cause and leave no engine process behind; closing is no death."""
        if self._llm is None or self._dead is None or self._dead.done():
            return
        logger.error("the vLLM engine died: %s", cause)
        self._dead.set_result(cause)
        for child in self._children:
            child.kill()


def find_model(model: Path | str) -> Path:
    """The checkpoint directory of a path, or of a Hugging Face name that is in the local cache.

    Raises:
        ConfigError: there is none; nothing is downloaded.
    """
    path = Path(model)
    if str(model) and (path / "config.json").is_file():
        return path.resolve()
    if str(model).count("/") == 1 and not path.is_absolute() and not path.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(str(model), local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            pass
    raise ConfigError(
        f"worker.engine.model: {str(model)!r} is neither a model directory (with a config.json) nor "
        "in the local Hugging Face cache; give the path of a checkpoint, or download it first: "
        "hf download <name>"
    )
