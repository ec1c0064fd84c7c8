"""What the rest of a worker needs from an inference engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from explorer_mq_schemas.experiences import VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer of R tokens: token_ids [R] int32, logprobs [R] float32.

    ``logprobs`` are natural logarithms under the distribution that was sampled from; [0] when they
    were not asked for. ``versions`` cover all R tokens in order.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    versions: tuple[VersionSegment, ...]
    text: str


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens added."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids``, without special tokens."""

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, ready for the next answer."""


class Engine(Protocol):
    """An inference engine that holds one policy version at a time."""

    @property
    def name(self) -> str:
        """Kind of engine."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    def policy_version(self) -> int:
        """The version the engine was verified to hold."""

    @property
    def max_model_tokens(self) -> int:
        """Longest prompt plus answer."""

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled since the start."""

    @property
    def paused_s(self) -> float:
        """Seconds in all that weight updates held generation up, one in progress included."""

    async def start(self) -> None:
        """Load the model.

        Raises:
            ConfigError: model, settings or installation are at fault.
            EngineError: the engine failed to come up.
        """

    async def close(self) -> None:
        """Free everything the engine holds, its processes too."""

    async def generate(
        self, prompt_token_ids: Sequence[int], config: GenerationConfig, *, priority: int = 0
    ) -> list[Completion]:
        """``config.n`` answers. Cancelling the call aborts the requests.

        Raises:
            TaskError: the prompt or the parameters cannot be used.
            EngineError: the engine failed.
        """

    def tokens_of(self, request: asyncio.Task[Any]) -> int | None:
        """Tokens sampled so far for the call of :meth:`generate` that runs in ``request``.

        It never shrinks while the call lasts. None: the engine cannot tell.
        """

    async def load_policy(self, version: int, path: Path) -> None:
        """Swap in a safetensors file, or a directory of them, while generations go on.

        On return the engine is verified to hold it, and ``policy_version == version``.

        Raises:
            ContractError: names, shapes or values do not fit; the old weights stay.
            EngineError: the engine failed; it is dead then.
        """

    async def wait_dead(self) -> str:
        """Wait until the engine has died and say why."""
