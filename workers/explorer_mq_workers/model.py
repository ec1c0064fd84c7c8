"""The model as workflows see it: prompts in, experiences out, exactly the tokens that were sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from explorer_mq_schemas.errors import InvalidRequest, TaskError
from explorer_mq_schemas.experiences import Experience, VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.protocol import Completion, Engine, Tokenizer

T = TypeVar("T")
Prompt = str | Sequence[int]


class Model:
    """One engine for one run of a workflow.

    The ``_async`` methods are for coroutines; the plain ones for workflows in a thread.
    ``history`` collects every experience the model produced.
    """

    def __init__(self, engine: Engine, config: GenerationConfig | None = None) -> None:
        self._engine = engine
        self._config = config or GenerationConfig()
        self._loop = asyncio.get_running_loop()
        self.history: list[Experience] = []
        self.state: dict[str, Any] = {}
        self.calls = 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._engine.tokenizer

    @property
    def model_version(self) -> int:
        """Policy version the engine holds now."""
        return self._engine.policy_version

    @property
    def max_model_tokens(self) -> int:
        """Longest prompt plus answer."""
        return self._engine.max_model_tokens

    def clone_with_isolated_history(self, config: GenerationConfig | None = None) -> Model:
        """The same engine with a history and state of its own."""
        return Model(self._engine, config or self._config)

    async def complete_async(
        self, prompt_token_ids: Sequence[int], **overrides: Any
    ) -> list[Completion]:
        """Raw answers to a tokenised prompt; overrides are fields of ``GenerationConfig``.

        Raises:
            TaskError: the prompt or an override cannot be used.
        """
        try:
            config = GenerationConfig.model_validate({**self._config.model_dump(), **overrides})
        except ValueError as error:
            raise TaskError(f"sampling parameters: {error}") from error
        self.calls += 1
        return await self._engine.generate(prompt_token_ids, config)

    async def generate_async(
        self, prompts: Prompt | Sequence[Prompt], **overrides: Any
    ) -> list[Experience]:
        """``n`` experiences for each prompt (text or token ids), in order of the prompts."""
        groups = await asyncio.gather(
            *(self._generate_one(prompt, None, overrides) for prompt in _each(prompts))
        )
        return [experience for group in groups for experience in group]

    async def chat_async(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        **overrides: Any,
    ) -> list[Experience]:
        """``n`` experiences for a conversation, through the model's chat template."""
        tokens = self.tokenizer.apply_chat_template(messages, tools=tools)
        return await self._generate_one(tokens, list(messages), overrides)

    def generate(self, prompts: Prompt | Sequence[Prompt], **overrides: Any) -> list[Experience]:
        """As :meth:`generate_async`, from a thread."""
        return self._wait(self.generate_async(prompts, **overrides))

    def chat(self, messages: Sequence[dict[str, Any]], **overrides: Any) -> list[Experience]:
        """As :meth:`chat_async`, from a thread."""
        return self._wait(self.chat_async(messages, **overrides))

    def extract_experience_from_history(self, *, clear: bool = True) -> list[Experience]:
        """What the model produced so far."""
        found = list(self.history)
        if clear:
            self.history.clear()
        return found

    def set_workflow_state(self, state: dict[str, Any]) -> None:
        """Tell the operator what the workflow is doing."""
        self.state.update(state)

    async def _generate_one(
        self, prompt: Prompt, messages: list[dict[str, Any]] | None, overrides: dict[str, Any]
    ) -> list[Experience]:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if len(tokens) >= self.max_model_tokens:
            return [self._truncated(tokens) for _ in range(overrides.get("n", self._config.n))]
        completions = await self.complete_async(tokens, **overrides)
        found = [self._experience(tokens, one, messages) for one in completions]
        self.history.extend(found)
        return found

    def _experience(
        self, prompt: list[int], completion: Completion, messages: list[dict[str, Any]] | None
    ) -> Experience:
        if not len(completion.token_ids):
            raise TaskError("the engine returned an empty answer (aborted, or stopped at once)")
        return Experience(
            tokens=np.concatenate([np.array(prompt, np.int32), completion.token_ids]),
            prompt_length=len(prompt),
            logprobs=completion.logprobs,
            response_text=completion.text,
            prompt_text=self.tokenizer.decode(prompt) if messages is None else None,
            messages=messages,
            truncate_status="response_truncated" if completion.finish_reason == "length" else None,
            **version_fields(completion.versions),
        )

    def _truncated(self, prompt: list[int]) -> Experience:
        """A prompt beyond the context yields a sample that trains nothing."""
        return Experience(
            tokens=np.array(prompt[: self.max_model_tokens], np.int32),
            prompt_length=self.max_model_tokens - 1,
            logprobs=np.zeros(1, np.float32),
            reward=0.0,
            truncate_status="prompt_truncated",
            response_text="",
            policy_version_start=self.model_version,
            policy_version_end=self.model_version,
        )

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        work.close()
        del running
        raise InvalidRequest("call the _async method from a coroutine: this one would block it")


def version_fields(versions: Sequence[VersionSegment]) -> dict[str, Any]:
    """Version fields of an experience whose response has these segments."""
    if not versions:
        return {}
    return {
        "versions": tuple(versions),
        "policy_version_start": versions[0].version,
        "policy_version_end": versions[-1].version,
    }


def _each(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [cast("Prompt", prompts)]
    return list(cast("Sequence[Prompt]", prompts))
