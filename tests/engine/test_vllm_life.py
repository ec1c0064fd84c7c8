"""Start, death and end of engines; each test has its own, forked from this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import threading

import psutil
import pytest

from explorer_mq_schemas.errors import ConfigError, EngineError
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines.checkpoint import Blueprint
from explorer_mq_workers.engines.vllm import VllmEngine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(120),
]

PROMPT = [257, 82, 78, 81, 83, 256]
WHOLE_CONTEXT = GenerationConfig(ignore_eos=True)
SHORT = GenerationConfig(max_tokens=4, ignore_eos=True)


@contextlib.asynccontextmanager
async def running(settings):
    """A started engine, its core process, and a request in flight."""
    others = set(psutil.Process().children(recursive=True))
    engine = VllmEngine(settings)
    await engine.start()
    (core,) = set(psutil.Process().children(recursive=True)) - others
    request = asyncio.create_task(engine.generate(PROMPT, WHOLE_CONTEXT))
    try:
        await engine.generate(PROMPT, SHORT)
        yield engine, core, request
    finally:
        request.cancel()
        await engine.close()
        await asyncio.gather(request, return_exceptions=True)
        assert not core.is_running()


async def test_killed_core_fails_requests_and_is_reported(engine, settings, policies):
    async with running(settings) as (own, core, request):
        watching = asyncio.create_task(own.wait_dead())
        core.send_signal(signal.SIGKILL)
        assert "SIGKILL" in await watching
        with pytest.raises(EngineError, match="died"):
            await request
        with pytest.raises(EngineError, match=r"dead: EngineCore.*SIGKILL"):
            await own.generate(PROMPT, SHORT)
        with pytest.raises(EngineError, match="dead"):
            await own.load_policy(1, policies.file(1))
    assert await engine.generate(PROMPT, SHORT)


async def test_core_killed_during_an_update_ends_the_update(engine, settings, policies):
    async with running(settings) as (own, core, _):
        core.suspend()
        update = asyncio.create_task(own.load_policy(1, policies.file(1)))
        core.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match="version 1"):
            await update
        assert own.policy_version == 0
        await own.wait_dead()


async def test_weights_that_changed_after_the_check_end_the_engine(
    engine, settings, policies, monkeypatch
):
    monkeypatch.setattr(Blueprint, "check", lambda self, path: "0" * 64)
    async with running(settings) as (own, core, request):
        with pytest.raises(EngineError, match="instead of"):
            await own.load_policy(1, policies.file(1))
        assert own.policy_version == 0
        assert "policy version 1" in await own.wait_dead()
        psutil.wait_procs([core], timeout=10)
        with pytest.raises(EngineError):
            await request


async def test_close_fails_requests_and_is_no_death(engine, settings):
    async with running(settings) as (own, core, request):
        await own.close()
        with pytest.raises(EngineError, match="closed"):
            await request
        assert not core.is_running()
        watching = asyncio.create_task(own.wait_dead())
        await asyncio.wait([watching], timeout=0)
        assert not watching.done()
        watching.cancel()


async def test_tied_head_follows_an_update(engine, settings, model_dir, make_policies, tmp_path):
    from safetensors.numpy import load_file, save_file

    tied = tmp_path / "tied"
    shutil.copytree(model_dir, tied)
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = load_file(tied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
    policies = make_policies(tied)
    async with running(settings.model_copy(update={"model": tied})) as (own, _, _):
        await own.load_policy(1, policies.file(1))
        (one,) = await own.generate(PROMPT, GenerationConfig(max_tokens=50, ignore_eos=True))
        assert policies.worst(PROMPT, one) < 1e-3


@pytest.mark.parametrize("name", ["no-such-directory", "no-such/model", ""])
async def test_missing_model_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    from explorer_mq.settings import VllmSettings

    with pytest.raises(ConfigError, match=rf"worker\.engine\.model: '{name}'"):
        await VllmEngine(VllmSettings(model=name)).start()


async def test_refused_setting_is_named(engine, settings):
    refused = settings.model_copy(update={"extra_args": {"no_such_argument": 1}})
    with pytest.raises(ConfigError, match="no_such_argument"):
        await VllmEngine(refused).start()
    too_long = settings.model_copy(update={"max_model_len": 1 << 20})
    with pytest.raises(ConfigError, match="max_model_len"):
        await VllmEngine(too_long).start()


async def test_start_is_refused_off_the_main_thread(settings):
    caught = []

    def start():
        try:
            asyncio.run(VllmEngine(settings).start())
        except ConfigError as error:
            caught.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in caught[0]


async def test_engine_that_is_not_started_says_so(settings):
    own = VllmEngine(settings)
    with pytest.raises(EngineError, match="not started"):
        await own.generate(PROMPT, SHORT)
    with pytest.raises(EngineError, match="not started"):
        await own.wait_dead()
    await own.close()
