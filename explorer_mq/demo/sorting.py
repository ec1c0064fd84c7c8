"""The demo's verifiable task: write three digits in ascending order."""

from __future__ import annotations

import random

from explorer_mq_schemas.tasks import GenerationConfig, Task

DIGITS = 3
MAX_ANSWER_TOKENS = 8


def question(rng: random.Random) -> tuple[str, str]:
    """A prompt such as ``sort 729`` and its answer ``279``."""
    digits = "".join(str(rng.randrange(10)) for _ in range(DIGITS))
    return f"sort {digits}", "".join(sorted(digits))


def task(rng: random.Random, *, group_size: int) -> Task:
    """One task with a group of ``group_size`` runs, sampled at temperature 1."""
    prompt, answer = question(rng)
    return Task(
        workflow="single_turn",
        reward_fn="partial_match",
        repeat_times=group_size,
        raw_task={"prompt": prompt, "answer": answer},
        rollout_args=GenerationConfig(temperature=1.0, max_tokens=MAX_ANSWER_TOKENS),
    )
