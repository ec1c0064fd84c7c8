"""One prompt, one answer, one verifiable reward."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from explorer_mq_schemas.experiences import Experience
from explorer_mq_workers.rewards import score
from explorer_mq_workers.workflows.protocol import Workflow, prompt_tokens


class SingleTurn(Workflow):
    """All runs of a group in one engine call, each scored by the task's reward."""

    can_reset = True
    can_repeat = True
    is_async = True

    async def run_async(self) -> list[Experience]:
        """One experience per run."""
        tokens, messages = prompt_tokens(self.task, self.model)
        found = await self.model.generate_async(tokens, n=len(self.run_ids))
        await asyncio.gather(*(self._score(experience) for experience in found))
        for run, experience in zip(self.run_ids, found, strict=True):
            experience.eid = replace(experience.eid, run=run)
            experience.messages = messages
        return found

    async def _score(self, experience: Experience) -> None:
        if experience.truncate_status == "prompt_truncated":
            return
        reward, parts = await score(self.task, experience.response_text or "")
        experience.reward = reward
        experience.metrics.update({"reward": reward, **parts})
        experience.metrics["response_length"] = float(experience.response_length)
