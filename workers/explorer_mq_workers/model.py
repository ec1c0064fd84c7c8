"""The model as workflows see it: prompts in, experiences out, exactly the tokens that were sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

import numpy as np

from explorer_mq_schemas.errors import EngineError, TaskError
from explorer_mq_schemas.experiences import Experience, VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.protocol import Completion, Engine, Tokenizer
from explorer_mq_workers.scope import RunScope

Prompt = str | Sequence[int]
Message = dict[str, Any]


class Model:
    """One engine for one run of a workflow.

    The ``_async`` methods are for coroutines; the plain ones for workflows in a thread. ``config``
    holds the sampling parameters; each call may override its fields by keyword. ``history``
    collects every experience that :meth:`generate` and :meth:`chat` produced.
    """

    def __init__(
        self,
        engine: Engine,
        config: GenerationConfig | None = None,
        *,
        scope: RunScope | None = None,
    ) -> None:
        self._engine = engine
        self._config = config or GenerationConfig()
        self._scope = scope or RunScope()
        self._state = self._scope.state
        self.history: list[Experience] = []

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

    @property
    def calls(self) -> int:
        """Requests of this run so far, those of clones included."""
        return self._scope.calls

    @property
    def tokens(self) -> int:
        """Tokens sampled for this run so far, those of clones included."""
        return self._scope.tokens

    def clone_with_isolated_history(self, config: GenerationConfig | None = None) -> Model:
        """The same engine and run, with a history and workflow state of its own."""
        clone = Model(self._engine, config or self._config, scope=self._scope)
        clone._state = {}
        return clone

    async def complete_async(
        self, prompt_token_ids: Sequence[int], **overrides: Any
    ) -> list[Completion]:
        """``n`` raw answers to a tokenised prompt; they are not added to the history.

        Raises:
            TaskError: the prompt or an override cannot be used, or an answer is empty.
            EngineError: the engine failed or gave the request up.
        """
        return await self._complete(prompt_token_ids, self._sampling(overrides))

    async def generate_async(
        self, prompts: Prompt | Sequence[Prompt], **overrides: Any
    ) -> list[Experience]:
        """``n`` experiences for each prompt (text or token ids), in order of the prompts.

        A prompt that leaves no room for an answer gives ``n`` of :meth:`prompt_truncated`.

        Raises:
            TaskError: a prompt or an override cannot be used.
            EngineError: the engine failed.
        """
        config = self._sampling(overrides)
        wanted = [self._generate_one(prompt, None, config) for prompt in _each(prompts)]
        if len(wanted) == 1:
            return await wanted[0]
        groups = await asyncio.gather(*wanted)
        return [experience for group in groups for experience in group]

    async def chat_async(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        **overrides: Any,
    ) -> list[Experience]:
        """``n`` experiences for a conversation, through the model's chat template.

        Raises:
            TaskError: the template refuses the messages, or an override cannot be used.
            EngineError: the engine failed.
        """
        tokens = self.tokenizer.apply_chat_template(messages, tools=tools)
        found = await self._generate_one(tokens, list(messages), self._sampling(overrides))
        for experience in found:
            experience.tools = list(tools) if tools else None
        return found

    def generate(self, prompts: Prompt | Sequence[Prompt], **overrides: Any) -> list[Experience]:
        """As :meth:`generate_async`, from a thread."""
        return self._scope.wait(self.generate_async(prompts, **overrides))

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        **overrides: Any,
    ) -> list[Experience]:
        """As :meth:`chat_async`, from a thread."""
        return self._scope.wait(self.chat_async(messages, tools, **overrides))

    def prompt_truncated(self, prompt_token_ids: Sequence[int]) -> Experience:
        """The sample of a prompt beyond the context: reward 0, nothing in it is trained on.

        Its tokens are the prompt's first ``max_model_tokens``.
        """
        return Experience(
            tokens=np.array(prompt_token_ids[: self.max_model_tokens], np.int32),
            prompt_length=self.max_model_tokens - 1,
            logprobs=np.zeros(1, np.float32),
            reward=0.0,
            truncate_status="prompt_truncated",
            response_text="",
            metrics={"reward": 0.0},
            policy_version_start=self.model_version,
            policy_version_end=self.model_version,
        )

    def extract_experience_from_history(self, clear: bool = True) -> list[Experience]:
        """What the model produced so far."""
        found = list(self.history)
        if clear:
            self.history.clear()
        return found

    def set_workflow_state(self, state: Mapping[str, Any]) -> None:
        """Note what the workflow is doing; keys already there are replaced.

        People see it in the worker's slots, and it counts as progress: noting something now and then
        keeps long work without model calls from being ended as stalled.
        """
        self._state.update(state)
        self._scope.note_progress()

    def get_workflow_state(self) -> dict[str, Any]:
        """What the workflow noted."""
        return dict(self._state)

    def clean_workflow_state(self) -> None:
        """Forget what the workflow noted."""
        self._state.clear()

    def _sampling(self, overrides: dict[str, Any]) -> GenerationConfig:
        if not overrides:
            return self._config
        try:
            return GenerationConfig.model_validate({**self._config.model_dump(), **overrides})
        except ValueError as error:
            raise TaskError(f"sampling parameters: {error}") from error

    async def _complete(
        self, prompt_token_ids: Sequence[int], config: GenerationConfig
    ) -> list[Completion]:
        completions = await self._scope.request(
            lambda: self._engine.generate(prompt_token_ids, config)
        )
        for one in completions:
            if one.finish_reason == "abort":
                raise EngineError("the engine gave the request up before its answer was complete")
            if not len(one.token_ids):
                raise TaskError("the model answered with no token at all")
        return completions

    async def _generate_one(
        self, prompt: Prompt, messages: list[Message] | None, config: GenerationConfig
    ) -> list[Experience]:
        text = prompt if isinstance(prompt, str) else None
        tokens = (
            self.tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else [int(token) for token in prompt]
        )
        if len(tokens) >= self.max_model_tokens:
            found = [self.prompt_truncated(tokens) for _ in range(config.n)]
        else:
            if text is None and messages is None:
                text = self.tokenizer.decode(tokens)
            completions = await self._complete(tokens, config)
            found = [_experience(tokens, completion) for completion in completions]
        for experience in found:
            experience.prompt_text = text
            experience.messages = messages
        self.history.extend(found)
        return found


def version_fields(versions: Sequence[VersionSegment]) -> dict[str, Any]:
    """Version fields of an experience whose response has these segments."""
    if not versions:
        return {}
    return {
        "versions": tuple(versions),
        "policy_version_start": versions[0].version,
        "policy_version_end": versions[-1].version,
    }


def _experience(prompt: list[int], completion: Completion) -> Experience:
    return Experience(
        tokens=np.concatenate([np.array(prompt, np.int32), completion.token_ids]),
        prompt_length=len(prompt),
        logprobs=completion.logprobs,
        response_text=completion.text,
        truncate_status="response_truncated" if completion.finish_reason == "length" else None,
        **version_fields(completion.versions),
    )


def _each(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts one by one; a plain sequence of token ids is a single one."""
    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Integral)):
        return [cast("Prompt", prompts)]
    return list(cast("Sequence[Prompt]", prompts))
