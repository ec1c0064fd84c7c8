"""Several turns with a verifier or user that answers: try, hear what was wrong, try again.

Tokens are only appended, never decoded and encoded again: the trained sequence is exactly what the
engine saw and sampled, and ``action_mask`` marks the sampled part.
"""

from __future__ import annotations

import functools
from typing import Any

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_workers.boundary import boundary
from explorer_mq_workers.calling import call, load_code
from explorer_mq_workers.rewards import score
from explorer_mq_workers.workflows.protocol import Workflow, is_chat, prompt_tokens
from explorer_mq_workers.workflows.transcript import Transcript, chat_reply_tokens

_MAX_TURNS = 3
_FEEDBACK = "That is not right. Try again."


class MultiTurn(Workflow):
    """Up to ``max_turns`` (3) answers until one earns the full reward of 1, all in one experience.

    The last answer's reward is the experience's. ``workflow_args``: ``max_turns``; ``feedback``,
    the text the model hears after a wrong answer; or ``reply_fn``, the name of a function
    ``fn(task, messages) -> str | None`` that says it instead, sync or async; None ends the
    conversation. ``truncate_status`` is ``response_truncated`` when the last answer was cut off
    or the context has no room for another turn; the reward stands.
    """

    is_async = True

    async def run_async(self) -> list[Experience]:
        """One experience that spans all turns."""
        tokens, messages = prompt_tokens(self.task, self.model)
        if len(tokens) >= self.model.max_model_tokens:
            truncated = self.model.prompt_truncated(tokens)
            truncated.messages = messages
            return [truncated]
        transcript = Transcript(tokens)
        status, text = None, ""
        reward, parts = 0.0, dict[str, float]()
        turns = 0
        while True:
            (completion,) = await self.model.complete_async(transcript.tokens, n=1)
            transcript.add_answer(completion)
            turns, text = turns + 1, completion.text
            messages = [*messages, {"role": "assistant", "content": text}]
            status = "response_truncated" if completion.finish_reason == "length" else None
            reward, parts = await score(self.task, text)
            content = None if reward >= 1 or turns >= self._max_turns else await self._say(messages)
            if content is None:
                break
            reply = self._reply_tokens(content, completion.token_ids.tolist())
            if len(transcript.tokens) + len(reply) >= self.model.max_model_tokens:
                status = "response_truncated"
                break
            transcript.add_reply(reply)
            messages = [*messages, {"role": "user", "content": content}]
        return [
            transcript.experience(
                reward=reward,
                response_text=text,
                messages=messages,
                truncate_status=status,
                metrics={"reward": reward, **parts, "turns": float(turns)},
            )
        ]

    @property
    def _max_turns(self) -> int:
        return int(self.task.workflow_args.get("max_turns", _MAX_TURNS))

    async def _say(self, messages: list[dict[str, Any]]) -> str | None:
        """What the model hears next; None to end."""
        arguments = self.task.workflow_args
        name = arguments.get("reply_fn")
        if name is None:
            return str(arguments.get("feedback", _FEEDBACK))
        async with boundary(f"workflow {self.task.workflow!r}, reply {name!r}"):
            code = await load_code(name, "explorer_mq.replies")
            said = await call(functools.partial(code, self.task, messages), name=f"reply {name}")
        if said is None or isinstance(said, str):
            return said
        raise TaskError(f"reply {name!r} returned {said!r}; expected text, or None to end")

    def _reply_tokens(self, content: str, answer: list[int]) -> list[int]:
        tokenizer = self.model.tokenizer
        if is_chat(self.task):
            return chat_reply_tokens(tokenizer, content, answer)
        return tokenizer.encode(content)
