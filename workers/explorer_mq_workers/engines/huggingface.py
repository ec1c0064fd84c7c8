"""The tokenizer of a checkpoint in Hugging Face layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from explorer_mq_schemas.errors import ConfigError, TaskError


class HuggingFaceTokenizer:
    """Implements the tokenizer protocol over ``transformers``."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @classmethod
    def of_model(cls, model: Path) -> Self:
        """The tokenizer in a checkpoint directory; nothing is downloaded.

        Raises:
            ConfigError: there is none, or it cannot be loaded.
        """
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(model), local_files_only=True))
        except (OSError, ValueError) as error:
            raise ConfigError(f"worker.engine.model: no tokenizer in {model}: {error}") from error

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
        """Token ids of a conversation, ready for the next answer.

        Raises:
            TaskError: the model has no chat template, or it refuses these messages.
        """
        try:
            text = self._inner.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:  # a template is a program and raises what it likes
            raise TaskError(f"the chat template refuses the messages: {error}") from error
        return self.encode(text)
