"""Several turns with a verifier that answers: try, hear what was wrong, try again.

Tokens are only appended, never decoded and encoded again: the trained sequence is exactly what the
engine saw and sampled, and ``action_mask`` marks the sampled part.
"""

from __future__ import annotations

import numpy as np

from explorer_mq_schemas.experiences import Experience, VersionSegment
from explorer_mq_workers.model import version_fields
from explorer_mq_workers.rewards import score
from explorer_mq_workers.workflows.protocol import Workflow, prompt_tokens


class MultiTurn(Workflow):
    """Up to ``workflow_args["max_turns"]`` (3) answers until one earns the full reward of 1.

    ``workflow_args["feedback"]`` is the text the model hears after a wrong answer. The last answer's
    reward is the experience's reward.
    """

    is_async = True

    async def run_async(self) -> list[Experience]:
        """One experience that spans all turns."""
        arguments = self.task.workflow_args
        feedback = str(arguments.get("feedback", "That is not right. Try again."))
        tokens, messages = prompt_tokens(self.task, self.model)
        prompt_length = len(tokens)
        mask: list[bool] = []
        logprobs: list[float] = []
        versions: list[VersionSegment] = []
        reward, parts, text, turns = 0.0, {"reward": 0.0}, "", 0
        for turn in range(int(arguments.get("max_turns", 3))):
            if turn:
                reply = self._reply(feedback)
                tokens += reply
                mask += [False] * len(reply)
                logprobs += [0.0] * len(reply)
                messages = [*messages, {"role": "user", "content": feedback}]
            if len(tokens) >= self.model.max_model_tokens - 1:
                break
            (completion,) = await self.model.complete_async(tokens, n=1)
            at = len(mask)
            versions += [VersionSegment(v, at + s, at + e) for v, s, e in completion.versions]
            tokens += completion.token_ids.tolist()
            mask += [True] * len(completion.token_ids)
            logprobs += completion.logprobs.tolist()
            turns, text = turn + 1, completion.text
            messages = [*messages, {"role": "assistant", "content": text}]
            reward, parts = await score(self.task, text)
            if reward >= 1.0:
                break
        return [
            Experience(
                tokens=np.array(tokens, np.int32),
                prompt_length=prompt_length,
                action_mask=np.array(mask, np.bool_),
                logprobs=np.array(logprobs, np.float32),
                reward=reward,
                response_text=text,
                messages=messages,
                metrics={"reward": reward, **parts, "turns": float(turns)},
                **version_fields(versions),
            )
        ]

    def _reply(self, feedback: str) -> list[int]:
        """Tokens between the model's answer and its next one."""
        if not self.task.format_args.get("chat", True):
            return self.model.tokenizer.encode(feedback)
        return self.model.tokenizer.apply_chat_template([{"role": "user", "content": feedback}])
