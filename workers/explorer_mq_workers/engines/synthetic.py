"""Tokens out of thin air, with configurable latency: for scale tests and benchmarks only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from explorer_mq.settings import SyntheticSettings
from explorer_mq_schemas.errors import EngineError, TaskError
from explorer_mq_schemas.experiences import VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.protocol import Completion


@dataclass(frozen=True, slots=True)
class _Running:
    """A request in progress: start on the loop's clock, duration, and tokens it will yield."""

    started_at: float
    latency_s: float
    tokens: int


class ByteTokenizer:
    """One token per UTF-8 byte."""

    eos_token_id: int | None = None

    def encode(self, text: str) -> list[int]:
        """The bytes of ``text``."""
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the bytes; invalid sequences are replaced."""
        return bytes(token % 256 for token in token_ids).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """``role: content`` lines."""
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        if tools:
            lines.insert(0, f"tools: {len(tools)}\n")
        return self.encode("".join(lines) + ("assistant: " if add_generation_prompt else ""))


class SyntheticEngine:
    """Implements the engine protocol without a model."""

    name = "synthetic"
    max_model_tokens = 1 << 20

    def __init__(self, settings: SyntheticSettings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)  # noqa: S311 - not for secrets
        self._dead: asyncio.Future[str] | None = None
        self._running: dict[asyncio.Task[Any], _Running] = {}
        self.tokenizer = ByteTokenizer()
        self.policy_version = 0
        self.generated_tokens = 0
        self.paused_s = 0.0

    async def start(self) -> None:
        """Nothing to load."""
        self._dead = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Nothing to free."""

    async def generate(
        self, prompt_token_ids: Sequence[int], config: GenerationConfig, *, priority: int = 0
    ) -> list[Completion]:
        """Random tokens after the configured latency."""
        del priority
        if not prompt_token_ids:
            raise TaskError("the prompt is empty")
        settings = self._settings
        size = min(settings.tokens, config.max_tokens or settings.tokens)
        if settings.latency_s:
            await self._take_time(size * config.n)
        if settings.fail_rate and self._random.random() < settings.fail_rate:
            raise EngineError("synthetic failure, as fail_rate asks for")
        return [self._complete(size) for _ in range(config.n)]

    def tokens_of(self, request: asyncio.Task[Any]) -> int | None:
        """Tokens come evenly over the latency."""
        running = self._running.get(request)
        if running is None:
            return 0
        elapsed_s = asyncio.get_running_loop().time() - running.started_at
        return int(running.tokens * min(1.0, elapsed_s / running.latency_s))

    async def load_policy(self, version: int, path: Path) -> None:
        """Only the number changes."""
        del path
        self.policy_version = version

    async def wait_dead(self) -> str:
        """Never."""
        assert self._dead is not None
        return await asyncio.shield(self._dead)

    async def _take_time(self, tokens: int) -> None:
        settings = self._settings
        spread = settings.latency_jitter * settings.latency_s
        latency_s = settings.latency_s + self._random.uniform(-spread, spread)
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = _Running(asyncio.get_running_loop().time(), latency_s, tokens)
        try:
            await asyncio.sleep(latency_s)
        finally:
            del self._running[task]

    def _complete(self, size: int) -> Completion:
        tokens = [self._random.randrange(self._settings.vocab_size) for _ in range(size)]
        self.generated_tokens += size
        return Completion(
            token_ids=np.array(tokens, np.int32),
            logprobs=np.full(size, -1.0, np.float32),
            finish_reason="length",
            versions=(VersionSegment(self.policy_version, 0, size),),
            text=self.tokenizer.decode(tokens),
        )
