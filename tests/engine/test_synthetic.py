"""The synthetic engine keeps the engine protocol: shapes, versions, faults."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from explorer_mq.settings import SyntheticSettings
from explorer_mq_schemas.errors import EngineError, TaskError
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.synthetic import SyntheticEngine


async def start(**fields):
    engine = SyntheticEngine(SyntheticSettings(**fields))
    await engine.start()
    return engine


async def test_answers_have_the_configured_size_and_the_held_version():
    engine = await start(tokens=5, vocab_size=10)
    await engine.load_policy(3, Path("unused"))
    found = await engine.generate([1], GenerationConfig(n=2))
    assert [one.versions for one in found] == [((3, 0, 5),)] * 2
    assert all(len(one.token_ids) == len(one.logprobs) == 5 for one in found)
    assert max(int(one.token_ids.max()) for one in found) < 10
    (short,) = await engine.generate([1], GenerationConfig(max_tokens=2))
    assert len(short.token_ids) == 2
    assert engine.generated_tokens == 12


async def test_same_seed_gives_the_same_tokens():
    one, other = await start(seed=1), await start(seed=1)
    config = GenerationConfig()
    ((first,), (second,)) = (await one.generate([1], config), await other.generate([1], config))
    assert first.token_ids.tolist() == second.token_ids.tolist()


async def test_requests_fail_as_told_and_an_empty_prompt_is_refused():
    engine = await start(fail_rate=1.0)
    with pytest.raises(EngineError, match="fail_rate"):
        await engine.generate([1], GenerationConfig())
    with pytest.raises(TaskError, match="empty"):
        await engine.generate([], GenerationConfig())


async def test_latency_is_kept_and_cancelling_ends_it():
    engine = await start(latency_s=60.0)
    asked = asyncio.create_task(engine.generate([1], GenerationConfig()))
    await asyncio.wait([asked], timeout=0)
    assert not asked.done()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
