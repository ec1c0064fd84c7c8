"""Workflows that misbehave, one verb each."""

from __future__ import annotations

import asyncio

import numpy as np

from explorer_mq_schemas.experiences import Experience


def sample(reward):
    return Experience(
        tokens=np.arange(4),
        prompt_length=2,
        logprobs=np.zeros(2),
        reward=reward,
        metrics={"m": 1.0},
    )


async def good(task, model):
    return sample(1.0)


async def nan(task, model):
    return sample(float("nan"))


async def boom(task, model):
    raise ValueError("boom")


async def nothing(task, model):
    return []


async def hang(task, model):
    await asyncio.Event().wait()


calls: dict[str, int] = {}


async def flaky(task, model):
    """Every second call of a task fails."""
    key = task.raw_task["key"]
    calls[key] = calls.get(key, 0) + 1
    if calls[key] % 2 == 0:
        raise RuntimeError("flaky")
    return sample(0.5)


async def huge(task, model):
    """Twelve megabytes of experience."""
    tokens = np.ones(1_500_000, np.int32)
    return Experience(tokens=tokens, prompt_length=2, logprobs=np.zeros(1_499_998), reward=1.0)


async def noted_hang(task, model):
    """Says what it does, then hangs."""
    model.set_workflow_state({"phase": "thinking"})
    await asyncio.Event().wait()


async def first_run_only(task, model):
    """The first call of a task succeeds, all others hang."""
    key = f"first {task.raw_task['key']}"
    calls[key] = calls.get(key, 0) + 1
    if calls[key] > 1:
        await asyncio.Event().wait()
    return sample(0.5)


async def text_metric(task, model):
    experience = sample(1.0)
    experience.metrics = {"note": "a text"}
    return experience
