"""One prompt, one answer, one verifiable reward."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from explorer_mq_schemas.errors import TaskError, TransientError
from explorer_mq_schemas.experiences import Experience
from explorer_mq_workers.rewards import score
from explorer_mq_workers.workflows.protocol import Workflow, prompt_tokens


class SingleTurn(Workflow):
    """All runs of a group in one engine call, each scored by the task's reward.

    An answer that cannot be scored fails its own run only.
    """

    can_reset = True
    can_repeat = True
    is_async = True

    async def run_async(self) -> list[Experience]:
        """One experience per run that could be scored."""
        tokens, messages = prompt_tokens(self.task, self.model)
        found = await self.model.generate_async(tokens, n=self.repeat_times)
        for run, experience in enumerate(found, start=self.run_id_base):
            experience.eid = replace(experience.eid, run=run)
            experience.messages = messages
        scored = await asyncio.gather(*(self._score(experience) for experience in found))
        return [experience for experience, good in zip(found, scored, strict=True) if good]

    async def _score(self, experience: Experience) -> bool:
        if experience.truncate_status == "prompt_truncated":
            return True
        try:
            reward, parts = await score(self.task, experience.response_text or "")
        except (TaskError, TransientError) as error:
            self.failures[experience.eid.run] = error
            return False
        experience.reward = reward
        experience.metrics.update({"reward": reward, **parts})
        experience.metrics["response_length"] = float(experience.response_length)
        return True
