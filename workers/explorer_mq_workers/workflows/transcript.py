"""The token sequence of a conversation that only grows: what was sampled is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.experiences import Experience, VersionSegment
from explorer_mq_workers.engines.protocol import Completion, Tokenizer
from explorer_mq_workers.model import version_fields


class Transcript:
    """A prompt, then sampled answers and replies in turn.

    Shapes: ``tokens`` [T]; ``action_mask`` [R] and ``logprobs`` [R] cover all tokens after the
    prompt. The mask is True for sampled tokens only; replies have log-probability 0.
    ``versions`` are segments of the response; replies belong to none.
    """

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self.tokens = list(prompt_token_ids)
        self.prompt_length = len(self.tokens)
        self.action_mask: list[bool] = []
        self.logprobs: list[float] = []
        self.versions: list[VersionSegment] = []

    def add_answer(self, completion: Completion) -> None:
        """Append what the model sampled."""
        at = len(self.action_mask)
        self.versions += [
            VersionSegment(version, at + start, at + end)
            for version, start, end in completion.versions
        ]
        self.tokens += completion.token_ids.tolist()
        self.action_mask += [True] * len(completion.token_ids)
        self.logprobs += completion.logprobs.tolist()

    def add_reply(self, token_ids: Sequence[int]) -> None:
        """Append what the model hears; it is not trained on."""
        self.tokens += token_ids
        self.action_mask += [False] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids)

    def experience(self, **fields: Any) -> Experience:
        """All of it as one multi-turn experience; ``fields`` are further ones of ``Experience``."""
        return Experience(
            tokens=np.array(self.tokens, np.int32),
            prompt_length=self.prompt_length,
            action_mask=np.array(self.action_mask, np.bool_),
            logprobs=np.array(self.logprobs, np.float32),
            **version_fields(self.versions),
            **fields,
        )


def chat_reply_tokens(tokenizer: Tokenizer, content: str, answer: Sequence[int]) -> list[int]:
    """Tokens between a sampled ``answer`` and the next one, when the user says ``content``.

    They are what the chat template puts after an assistant's content: the end of that turn, the
    user's turn, the opening of the next. Templating the user's turn alone would not do: templates
    add a default system prompt or a start token to whatever comes first. An end-of-turn token that
    was sampled is not repeated.

    Raises:
        TaskError: the template refuses such a conversation, or shows no assistant turns.
    """
    first, second = (
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": probe},
                {"role": "user", "content": content},
            ]
        )
        for probe in ("0", "1")
    )
    if first == second:
        raise TaskError("the chat template leaves out what the assistant said: no multi-turn")
    after = _common_tail(first, second)
    if answer and after and answer[-1] == after[0]:
        return after[1:]
    return after


def _common_tail(first: list[int], second: list[int]) -> list[int]:
    size = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        size += 1
    return first[len(first) - size :]
