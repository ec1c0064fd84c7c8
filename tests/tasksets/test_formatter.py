"""From rows to tasks: what the row says, what the set says, what is missing."""

from __future__ import annotations

import pytest

from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq.tasksets.taskset import EvalTaskset, Taskset, open_eval_tasksets
from explorer_mq_schemas.errors import ConfigError
from explorer_mq_schemas.tasks import GenerationConfig, Task


def task_of(file, number=0, **fields):
    settings = TasksetSettings(name="mine", path=str(file), **fields)
    return Taskset(settings, 3, is_eval=False).tasks([number])[0]


def test_task_carries_the_settings_of_its_set(write_jsonl):
    row = {"question": "1+1?", "answer": "2"}
    task = task_of(
        write_jsonl({"question": "?", "answer": "0"}, row),
        number=1,
        format_args={"prompt_key": "question", "system_prompt": "Think.", "chat": False},
        workflow="single_turn",
        workflow_args={"a": 1},
        reward_fn="exact_match",
        reward_fn_args={"b": 2},
        repeat_times=8,
        rollout_args={"temperature": 0.5},
        pool="big",
    )
    assert task == Task(
        workflow="single_turn",
        workflow_args={"a": 1},
        reward_fn="exact_match",
        reward_fn_args={"b": 2},
        repeat_times=8,
        raw_task=row,
        format_args={"prompt_key": "question", "system_prompt": "Think.", "chat": False},
        rollout_args=GenerationConfig(temperature=0.5),
        pool="big",
        index={"taskset_id": 3, "index": 1},
    )
    assert task.task_desc == "1+1?"
    assert task.truth == "2"
    assert Task.decode(task.encode()) == task


def test_task_takes_workflow_and_reward_of_its_row_when_it_names_them(write_jsonl):
    file = write_jsonl(
        {"prompt": "a", "wf": "my:flow", "rw": "my:reward"},
        {"prompt": "b", "wf": None, "rw": ""},
        {"prompt": "c"},
    )
    keys = {"workflow_key": "wf", "reward_fn_key": "rw"}
    found = [
        task_of(file, n, format_args=keys, workflow="single_turn", reward_fn="exact_match")
        for n in range(3)
    ]
    assert [task.workflow for task in found] == ["my:flow", "single_turn", "single_turn"]
    assert [task.reward_fn for task in found] == ["my:reward", "exact_match", "exact_match"]
    assert found[0].format_args == {}


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"prompt": "a"}, {}, r"no workflow; set workflow, or format_args\.workflow_key"),
        (
            {"prompt": "a"},
            {"workflow": "single_turn"},
            r"workflow 'single_turn' needs a reward; set",
        ),
        (
            {"prompt": "a", "wf": 7},
            {"format_args": {"workflow_key": "wf"}},
            r"'wf' is 7; expected the name of code",
        ),
        (
            {"question": "a", "answer": "b"},
            {"workflow": "single_turn", "reward_fn": "exact_match"},
            r"no key 'prompt', it has question, answer; set format_args\.prompt_key",
        ),
        (
            {"prompt": "a"},
            {"workflow": "my:flow", "format_args": {"response_key": "solution"}},
            r"no key 'solution', it has prompt; set format_args\.response_key",
        ),
    ],
)
def test_task_is_refused_with_file_and_line_when_something_is_missing(
    write_jsonl, row, fields, message
):
    file = write_jsonl({"prompt": "first"}, row)
    with pytest.raises(ConfigError, match=rf"taskset 'mine', {file}:2: {message}"):
        task_of(file, 1, **fields)


def test_task_needs_no_prompt_when_its_row_has_messages_or_its_workflow_is_custom(write_jsonl):
    file = write_jsonl({"messages": [{"role": "user", "content": "hi"}]}, {"board": "..."})
    task_of(file, 0, workflow="single_turn", reward_fn="exact_match")
    task_of(file, 1, workflow="my:flow")


def test_reasoning_gym_needs_no_further_settings():
    pytest.importorskip("reasoning_gym")
    options = {"size": 3, "max_terms": 3}
    task = task_of("reasoning_gym:chain_sum", 2, seed=7, options=options)
    assert task.workflow == "single_turn"
    assert task.reward_fn == "reasoning_gym"
    assert task.reward_fn_args == {"dataset": "chain_sum", "options": {"seed": 7, **options}}
    assert task.task_desc == task.raw_task["question"]
    assert task.truth == task.raw_task["answer"]
    custom = task_of("reasoning_gym:chain_sum", 2, reward_fn="exact_match")
    assert custom.reward_fn_args == {}


def test_settings_take_defaults_only_where_they_have_none():
    settings = TasksetSettings(name="a", path="b", workflow="mine:flow")
    filled = settings.with_defaults(workflow="single_turn", reward_fn="exact_match", repeat_times=4)
    assert filled.workflow == "mine:flow"
    assert (filled.reward_fn, filled.repeat_times) == ("exact_match", 4)


def test_eval_set_is_read_once_and_keeps_its_short_last_batch(make_set):
    taskset = EvalTaskset(make_set(7), taskset_id=2)
    batches = list(taskset.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    tasks = [task for batch in batches for task in batch]
    assert tasks == taskset.tasks()
    assert [task.index for task in tasks] == [{"taskset_id": 2, "index": n} for n in range(7)]
    assert all(task.is_eval for task in tasks)
    assert len(taskset) == 7


def test_eval_sets_are_refused_when_they_select_or_share_a_name(make_set):
    with pytest.raises(ConfigError, match=r"'set' is for evaluation.*drop selector 'shuffle'"):
        EvalTaskset(make_set(7, selector="shuffle"))
    with pytest.raises(ConfigError, match=r"two tasksets are called 'set'"):
        open_eval_tasksets([make_set(7), make_set(3)])
    assert [s.name for s in open_eval_tasksets([make_set(7), make_set(3, name="b")])] == [
        "set",
        "b",
    ]
