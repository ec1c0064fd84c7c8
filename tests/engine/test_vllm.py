"""The real vLLM on the CPU: exact log-probabilities, updates in flight, faults of the caller."""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
import pytest

from explorer_mq_schemas.errors import ContractError, TaskError
from explorer_mq_schemas.tasks import GenerationConfig
from explorer_mq_workers.engines import vllm_api
from explorer_mq_workers.engines.huggingface import HuggingFaceTokenizer

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(120),
]

PROMPT = [257, 82, 78, 81, 83, 256]
LONG_PROMPT = [257, *range(20, 180), 256]
TOLERANCE = 1e-3

fixed_length = partial(GenerationConfig, ignore_eos=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_equal_a_torch_forward(engine, policies, temperature, record_property):
    config = fixed_length(n=4, max_tokens=100, temperature=temperature)
    version = engine.policy_version
    found = await engine.generate(PROMPT, config)
    assert [one.versions for one in found] == [((version, 0, 100),)] * 4
    assert len({tuple(one.token_ids) for one in found}) == 4
    worst = max(policies.worst(PROMPT, one, temperature=temperature) for one in found)
    record_property("logprob_max_abs_diff", worst)
    assert worst < TOLERANCE


async def test_completion_says_how_it_ended(engine):
    (stopped,) = await engine.generate(
        PROMPT, GenerationConfig(stop_token_ids=tuple(range(256)), max_tokens=9)
    )
    assert stopped.finish_reason == "stop"
    (cut,) = await engine.generate(PROMPT, fixed_length(max_tokens=3, logprobs=False))
    assert cut.finish_reason == "length"
    assert cut.token_ids.dtype == np.int32
    assert cut.logprobs.shape == (0,)


async def test_answer_may_fill_the_context_when_no_length_is_given(engine):
    (one,) = await engine.generate(PROMPT, fixed_length())
    assert len(PROMPT) + len(one.token_ids) == engine.max_model_tokens


async def test_lower_priority_number_overtakes_the_queue(settings, engine):
    order = []

    async def ask(name, priority):
        await engine.generate(PROMPT, fixed_length(max_tokens=8), priority=priority)
        order.append(name)

    waiting = settings.max_num_seqs * 2
    late = [asyncio.create_task(ask("late", 1)) for _ in range(waiting)]
    await asyncio.gather(ask("soon", 0), *late)
    assert order.index("soon") < waiting - 1


async def test_update_in_flight_is_exact_and_stamped(engine, policies, record_property):
    before, version = engine.policy_version, engine.policy_version + 1
    running = [
        asyncio.create_task(engine.generate(LONG_PROMPT, fixed_length(max_tokens=300)))
        for _ in range(8)
    ]
    await engine.generate(PROMPT, fixed_length(max_tokens=20))
    started = asyncio.get_running_loop().time()
    await engine.load_policy(version, policies.file(version))
    record_property("update_s", asyncio.get_running_loop().time() - started)
    assert engine.policy_version == version
    found = [one for task in running for one in await task]
    assert [[segment.version for segment in one.versions] for one in found] == [
        [before, version]
    ] * 8
    worst = max(policies.worst(LONG_PROMPT, one) for one in found)
    record_property("logprob_max_abs_diff", worst)
    assert worst < TOLERANCE
    (after,) = await engine.generate(LONG_PROMPT, fixed_length(max_tokens=20))
    assert after.versions == ((version, 0, 20),)
    assert policies.worst(LONG_PROMPT, after) < TOLERANCE


async def test_update_takes_a_checkpoint_directory(engine, policies, tmp_path):
    version = engine.policy_version + 1
    policies.model(version).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    await engine.load_policy(version, tmp_path)
    (one,) = await engine.generate(PROMPT, fixed_length(max_tokens=20))
    assert policies.worst(PROMPT, one) < TOLERANCE


async def test_bad_weights_are_refused_while_the_engine_goes_on(engine, policies, tmp_path):
    from safetensors.numpy import load_file, save_file

    version = engine.policy_version
    good = load_file(policies.file(version))
    name = "model.norm.weight"
    cases = {
        "missing": {k: v for k, v in good.items() if k != name},
        "does not have: extra": {**good, "extra": np.zeros(1, np.float32)},
        f"shape of {name}": {**good, name: np.zeros(3, np.float32)},
        "NaN or infinity": {**good, name: np.full_like(good[name], np.inf)},
    }
    path = tmp_path / "bad.safetensors"
    running = asyncio.create_task(engine.generate(PROMPT, fixed_length(max_tokens=400)))
    for words, state in cases.items():
        save_file(state, path)
        with pytest.raises(ContractError, match=words):
            await engine.load_policy(version + 1, path)
    path.write_bytes(policies.file(version).read_bytes()[:-4])
    with pytest.raises(ContractError, match="unreadable"):
        await engine.load_policy(version + 1, path)
    with pytest.raises(ContractError, match="no safetensors file"):
        await engine.load_policy(version + 1, tmp_path / "none")
    (one,) = await running
    assert engine.policy_version == version
    assert one.versions == ((version, 0, 400),)
    assert policies.worst(PROMPT, one) < TOLERANCE


async def test_cancelled_update_ends_whole(engine, policies, monkeypatch):
    touched, call = asyncio.Event(), vllm_api.call

    async def observed(*arguments):
        touched.set()
        return await call(*arguments)

    monkeypatch.setattr(vllm_api, "call", observed)
    version = engine.policy_version + 1
    update = asyncio.create_task(engine.load_policy(version, policies.file(version)))
    await touched.wait()
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    assert engine.policy_version == version
    (one,) = await engine.generate(PROMPT, fixed_length(max_tokens=20))
    assert one.versions == ((version, 0, 20),)
    assert policies.worst(PROMPT, one) < TOLERANCE


@pytest.mark.parametrize(
    ("prompt", "fields", "words"),
    [
        ([], {}, "empty"),
        ([1] * 512, {}, "512"),
        ([99_999], {}, "vocab"),
        ([-1], {}, "refuses"),
        (PROMPT, {"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        (PROMPT, {"extra": {"no_such_parameter": 1}}, "no_such_parameter"),
        (PROMPT, {"extra": {"n": 2}}, "'n'"),
        (PROMPT, {"extra": {"structured_outputs": {"regex": "[0-9"}}}, "refuses|parameters"),
    ],
)
async def test_bad_request_is_the_tasks_fault(engine, prompt, fields, words):
    with pytest.raises(TaskError, match=words):
        await engine.generate(prompt, GenerationConfig(**fields))
    assert await engine.generate(PROMPT, GenerationConfig(max_tokens=2))


async def test_structured_output_is_given_as_plain_data(engine):
    extra = {"structured_outputs": {"regex": "[0-9]{3}"}}
    (one,) = await engine.generate(PROMPT, GenerationConfig(max_tokens=8, extra=extra))
    assert one.text.isdecimal()
    assert len(one.text) == 3


async def test_cancelled_request_is_aborted_in_the_engine(engine):
    asked = [
        asyncio.create_task(engine.generate(PROMPT, fixed_length(n=2, max_tokens=500)))
        for _ in range(4)
    ]
    await engine.generate(PROMPT, fixed_length(max_tokens=4))
    assert engine.running_requests == 4
    for task in asked:
        task.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError)
        for end in await asyncio.gather(*asked, return_exceptions=True)
    )
    assert engine.running_requests == 0
    assert vllm_api.unfinished_requests(engine._llm) == 0
    tokens = engine.generated_tokens
    await engine.generate(PROMPT, fixed_length(max_tokens=4))
    assert engine.generated_tokens == tokens + 4


async def test_chat_template_that_fails_is_the_tasks_fault(model_dir):
    tokenizer = HuggingFaceTokenizer.of_model(model_dir)
    messages = [{"role": "user", "content": "hi"}]
    tokens = tokenizer.apply_chat_template(messages)
    assert tokenizer.decode(tokens) == "hi"
    assert tokenizer.encode("hi") == tokens[1:-1]
    tokenizer._inner.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TaskError, match="roles must alternate"):
        tokenizer.apply_chat_template(messages)
