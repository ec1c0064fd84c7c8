"""Running slices: modes, partial success, what user code may return; rewards; multi-turn tokens."""

from __future__ import annotations

import numpy as np
import pytest

from explorer_mq.settings import SyntheticSettings
from explorer_mq_schemas.codec import unpack
from explorer_mq_schemas.experiences import Experience, VersionSegment
from explorer_mq_schemas.tasks import GenerationConfig, Slice, Task
from explorer_mq_workers.engines.protocol import Completion
from explorer_mq_workers.engines.synthetic import SyntheticEngine
from explorer_mq_workers.rewards.partial_match import partial_match
from explorer_mq_workers.runner import WorkflowRunner


def sample():
    return Experience(tokens=np.arange(4), prompt_length=2, reward=1.0, metrics={"m": 2.0})


async def odd_fails(task, model):
    task.raw_task["seen"].append(1)
    if len(task.raw_task["seen"]) % 2:
        raise ValueError("odd")
    return sample()


def threaded(task, model):
    (experience,) = model.generate("hello", n=1)
    experience.reward = 0.5
    return experience


@pytest.fixture
async def engine():
    engine = SyntheticEngine(SyntheticSettings(tokens=5))
    await engine.start()
    return engine


def one_slice(workflow, run_ids=(0, 1, 2, 3), **fields):
    task = Task(workflow=workflow, **fields)
    return Slice(batch="b", task_number=7, number=0, run_ids=run_ids, task=task)


@pytest.mark.parametrize("mode", ["asynchronous", "sequential", "multi-threading"])
async def test_successful_runs_are_kept_when_others_fail(engine, mode):
    runner = WorkflowRunner(engine, concurrent_mode=mode)
    work = one_slice(f"{__file__}:odd_fails", run_ids=(2, 5, 6, 9), raw_task={"seen": []})
    outcome = await runner.run_slice(work)
    assert len(outcome.completed) == 2
    assert set(outcome.completed) < {2, 5, 6, 9}
    assert tuple(one.eid.run for one in outcome.experiences) == outcome.completed
    assert outcome.failure.kind == "ValueError"
    assert {one.eid.tid for one in outcome.experiences} == {"b/7"}
    assert outcome.metrics[0]["m"] == 2.0
    assert "time/run_execution" in outcome.metrics[0]


async def test_plain_function_runs_in_a_thread(engine):
    outcome = await WorkflowRunner(engine).run_slice(one_slice(f"{__file__}:threaded"))
    assert outcome.completed == (0, 1, 2, 3)
    assert outcome.experiences[0].response_length == 5


async def test_run_task_reports_like_the_reference(engine):
    task = Task(workflow="single_turn", reward_fn="exact_match", raw_task={"prompt": "hi"})
    status, payload = await WorkflowRunner(engine).run_task(task, 3, repeat_times=2, run_id_base=4)
    assert (status.ok, status.message) == (True, None)
    assert [one.eid.run for one in unpack(payload)] == [4, 5]
    assert unpack(payload)[0].info["model_version"] == 0
    status, payload = await WorkflowRunner(engine).run_task(Task(workflow="no:no"), 3)
    assert (status.completed_runs, payload) == (0, b"")
    assert "cannot be" in status.message or "No module" in status.message


async def test_prompt_beyond_the_context_trains_nothing(engine):
    engine.max_model_tokens = 10
    task = Task(reward_fn="exact_match", raw_task={"prompt": "x" * 50})
    _, payload = await WorkflowRunner(engine).run_task(task, 1)
    (one,) = unpack(payload)
    assert (one.truncate_status, one.reward, len(one.tokens)) == ("prompt_truncated", 0.0, 10)
    assert not one.action_mask.any()


@pytest.mark.parametrize(
    ("answer", "reward"), [("279", 1.0), ("297", 0.5 / 3), ("27", 0.0), ("", 0.0), ("792", 0.0)]
)
def test_partial_match_pays_for_characters_in_place(answer, reward):
    task = Task(raw_task={"answer": "279"})
    assert sum(partial_match(task, answer).values()) == pytest.approx(reward)


class Scripted(SyntheticEngine):
    """Answers from a list, one policy version per answer; keeps the prompts it saw."""

    def __init__(self, answers):
        super().__init__(SyntheticSettings())
        self.answers = list(answers)
        self.prompts = []

    async def generate(self, prompt_token_ids, config: GenerationConfig, *, priority=0):
        self.prompts.append(list(prompt_token_ids))
        text = self.answers.pop(0)
        tokens = np.array(self.tokenizer.encode(text), np.int32)
        version = len(self.prompts)
        segments = (VersionSegment(version, 0, len(tokens)),)
        return [Completion(tokens, np.full(len(tokens), -0.5, np.float32), "stop", segments, text)]


async def test_multi_turn_trains_on_exactly_what_was_sampled():
    engine = Scripted(["no", "yes"])
    task = Task(
        workflow="multi_turn",
        reward_fn="exact_match",
        raw_task={"prompt": "q", "answer": "yes"},
        workflow_args={"feedback": "wrong"},
    )
    _, payload = await WorkflowRunner(engine).run_task(task, 1)
    (one,) = unpack(payload)
    reply = b"\nuser: wrong\nassistant: "
    assert engine.prompts[1] == [*engine.prompts[0], *b"no", *reply]
    assert one.tokens.tolist() == [*engine.prompts[1], *b"yes"]
    assert one.prompt_length == len(engine.prompts[0])
    assert one.tokens[one.prompt_length :][one.action_mask].tolist() == [*b"no", *b"yes"]
    end = len(one.action_mask)
    assert one.versions == ((1, 0, 2), (2, end - 3, end))
    assert (one.reward, one.metrics["turns"], one.experience_type) == (1.0, 2.0, "multi_turn")
