"""Mixing sets into steps: the reference's rules, and the same rows after a resume at any step."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer_mq.tasksets.scheduler import TasksetScheduler
from explorer_mq_schemas.errors import ConfigError, InvalidRequest

COLUMNS = {"weak": [0.1, 0.5, 0.3, 0.0, 0.2], "strong": [0.9, 0.6, 0.3, 0.8]}
ARGS = {
    "offline_easy2hard": {"feature_keys": ["weak", "strong"]},
    "difficulty_based": {"feature_keys": ["weak", "strong"]},
}
SELECTORS = ["sequential", "shuffle", "random", "offline_easy2hard", "difficulty_based"]


def indices(tasks):
    return [(task.index["taskset_id"], task.index["index"]) for task in tasks]


def read_all(scheduler):
    steps = []
    while tasks := scheduler.read_batch():
        steps.append(indices(tasks))
    return steps


def learn(scheduler, tasks):
    """Feedback whose values follow from the rows, keyed as JSON would key it."""
    found: dict[str, dict[str, list]] = {}
    for taskset_id, number in indices(tasks):
        seen = found.setdefault(str(taskset_id), {"indices": [], "values": []})
        seen["indices"].append(number)
        seen["values"].append((number * 7 % 5) / 4)
    scheduler.feedback({"selector_metric": found})


@pytest.mark.parametrize(
    ("rows", "batch_size", "totals", "steps"),
    [
        (7, 3, {}, 2),
        (7, 3, {"total_epochs": 2}, 4),
        (7, 3, {"total_epochs": 3}, 7),
        (7, 8, {}, 0),
        (7, 8, {"total_epochs": 2}, 1),
        (7, 7, {}, 1),
        (7, 3, {"total_steps": 5}, 5),
        (7, 8, {"total_steps": 2}, 2),
        (7, 20, {"total_steps": 2, "total_epochs": 1}, 2),
    ],
)
def test_steps_follow_the_reference_when_one_set_is_read_in_order(
    make_set, rows, batch_size, totals, steps
):
    scheduler = TasksetScheduler([make_set(rows)], batch_size=batch_size, **totals)
    assert scheduler.steps_total == steps
    read = read_all(scheduler)
    numbers = [number for step in read for _, number in step]
    assert [len(step) for step in read] == [batch_size] * steps
    assert numbers == [n % rows for n in range(steps * batch_size)]
    assert scheduler.read_batch(steps + 5) == []
    assert scheduler.step == steps


def reference_steps(sizes, batch_size, steps):
    """The reference's loop, from its description: (set, count) in order for every step."""
    entries: list[int] = []
    epoch = 0
    while len(entries) < batch_size * steps:
        ids = [number for number, size in enumerate(sizes) for _ in range(size)]
        np.random.default_rng(epoch).shuffle(ids)
        entries += ids
        epoch += 1
    for step in range(steps):
        yield Counter(entries[step * batch_size : (step + 1) * batch_size])


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch_size=st.integers(1, 25),
    steps=st.integers(1, 8),
)
def test_sets_are_mixed_as_in_the_reference(make_set, sizes, batch_size, steps):
    sets = [make_set(size, name=f"s{number}") for number, size in enumerate(sizes)]
    scheduler = TasksetScheduler(sets, batch_size=batch_size, total_steps=steps)
    taken = [0] * len(sizes)
    for counts in reference_steps(sizes, batch_size, steps):
        expected = []
        for taskset_id, count in counts.items():
            start = taken[taskset_id]
            taken[taskset_id] += count
            expected += [(taskset_id, n % sizes[taskset_id]) for n in range(start, start + count)]
        assert indices(scheduler.read_batch()) == expected


def test_every_row_of_every_set_is_taken_once_an_epoch(make_set):
    sets = [make_set(7), make_set(5, name="b", selector="shuffle")]
    steps = read_all(TasksetScheduler(sets, batch_size=4))
    taken = Counter(entry for step in steps for entry in step)
    assert taken == Counter([(0, n) for n in range(7)] + [(1, n) for n in range(5)])


def test_each_set_of_a_mix_goes_on_with_its_own_epochs(make_set):
    sets = [make_set(7), make_set(6, name="b", selector="shuffle", seed=5)]
    steps = read_all(TasksetScheduler(sets, batch_size=4, total_epochs=3))
    shuffled = [number for step in steps for taskset_id, number in step if taskset_id == 1]
    orders = [np.random.default_rng(5 + epoch).permutation(6).tolist() for epoch in range(3)]
    # 39 entries make 9 steps: up to 3 entries of the last epoch are dropped
    expected = [number for order in orders for number in order]
    assert shuffled == expected[: len(shuffled)]
    assert len(shuffled) >= 15


@st.composite
def mixes(draw):
    """One to three sets of any selectors, and a batch size that each of them can serve."""
    names = draw(st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=3))
    sizes = [draw(st.integers(4, 11)) for _ in names]
    adaptive = {"tau": draw(st.sampled_from([0, 0.3])), "do_sample": draw(st.booleans())}
    return list(zip(names, sizes, strict=True)), adaptive, draw(st.integers(1, 4))


@settings(max_examples=60)
@given(mix=mixes(), stop=st.integers(0, 8), late=st.booleans())
def test_rows_are_the_same_after_a_resume_at_any_step(make_set, mix, stop, late):
    chosen, adaptive, batch_size = mix
    sets = []
    for number, (name, rows) in enumerate(chosen):
        args = dict(ARGS.get(name, {}))
        if name == "difficulty_based":
            args |= adaptive
        sets.append(
            make_set(rows, name=f"s{number}", columns=COLUMNS, selector=name, selector_args=args)
        )

    def fresh():
        return TasksetScheduler(sets, batch_size=batch_size, total_steps=9)

    whole = fresh()
    expected, saved = [], []
    for _ in range(9):
        saved.append(json.dumps(whole.state_dict()))
        tasks = whole.read_batch()
        expected.append(tasks)
        learn(whole, tasks)
    resumed = fresh()
    if late:  # it had read and learned other things before
        learn(resumed, resumed.read_batch(3))
    resumed.load_state_dict(json.loads(saved[stop]))
    assert resumed.step == stop
    for step in range(stop, 9):
        tasks = resumed.read_batch(step)
        assert tasks == expected[step]
        assert resumed.read_batch(step) == tasks
        learn(resumed, tasks)
    assert resumed.read_batch() == []


def test_state_is_plain_json_with_nothing_but_what_cannot_be_computed(make_set):
    scheduler = TasksetScheduler([make_set(7, selector="shuffle")], batch_size=2)
    scheduler.read_batch()
    assert scheduler.state_dict() == {
        "version": 1,
        "step": 1,
        "batch_size": 2,
        "tasksets": [{"name": "set", "rows": 7, "selector": "shuffle", "seed": 42, "state": {}}],
    }


@pytest.mark.parametrize(
    ("changed", "batch_size", "message"),
    [
        ({"rows": 8}, 2, r"taskset 'set': the number of rows changed from 7 to 8 since .* undo"),
        ({"selector": "shuffle"}, 2, r"selector changed from 'sequential' to 'shuffle'"),
        ({"seed": 1}, 2, r"seed changed from 42 to 1"),
        ({"name": "other"}, 2, r"the list of tasksets changed from \['set'\] to \['other'\]"),
        ({}, 3, r"batch_size changed from 2 to 3"),
    ],
)
def test_state_is_refused_when_the_rows_could_not_go_on(make_set, changed, batch_size, message):
    state = TasksetScheduler([make_set(7)], batch_size=2).state_dict()
    other = TasksetScheduler([make_set(**{"rows": 7, **changed})], batch_size=batch_size)
    with pytest.raises(ConfigError, match=message):
        other.load_state_dict(state)


@pytest.mark.parametrize("broken", [{}, {"version": 2}, {"step": -1}, {"tasksets": [{}]}])
def test_state_is_refused_when_it_is_no_state(make_set, broken):
    scheduler = TasksetScheduler([make_set(7)], batch_size=2)
    state = {**scheduler.state_dict(), **broken} if broken else {}
    with pytest.raises(ConfigError, match=r"the tasksets' saved state: "):
        scheduler.load_state_dict(state)


def test_a_longer_run_goes_on_from_the_state_of_a_shorter_one(make_set):
    short = TasksetScheduler([make_set(7, selector="shuffle")], batch_size=3)
    long = TasksetScheduler([make_set(7, selector="shuffle")], batch_size=3, total_epochs=3)
    expected = read_all(long)
    assert read_all(short) == expected[:2]
    resumed = TasksetScheduler([make_set(7, selector="shuffle")], batch_size=3, total_epochs=3)
    resumed.load_state_dict(short.state_dict())
    assert read_all(resumed) == expected[2:]


def test_feedback_is_taken_out_of_the_metrics_and_reaches_its_set(make_set, rows_file):
    scheduler = TasksetScheduler(
        [make_set(7), make_set(5, name="b", selector=f"{rows_file}:Backwards")], batch_size=2
    )
    metrics = {"selector_metric": {1: {"indices": np.array([4, 3]), "values": [0.5, 1]}}, "x": 1.0}
    scheduler.feedback(metrics)
    assert metrics == {"x": 1.0}
    assert scheduler.state_dict()["tasksets"][1]["state"] == {"heard": 2}
    scheduler.feedback(metrics)
    scheduler.feedback({"selector_metric": {}})
    assert scheduler.state_dict()["tasksets"][1]["state"] == {"heard": 2}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"7": {"indices": [0], "values": [1]}}, r"\['7'\]: there are 2 tasksets"),
        ({"x": {"indices": [0], "values": [1]}}, r"expected lists indices and values"),
        ({1: {"indices": [0]}}, r"expected lists indices and values: KeyError\('values'\)"),
        ({1: {"indices": [0, 1], "values": [1]}}, r"2 indices, but 1 values"),
        ({1: {"indices": [5], "values": [1]}}, r"no row 5, the set has 5"),
        ({1: {"indices": [0.5], "values": [1]}}, r"expected lists"),
        ({1: {"indices": [2], "values": [float("nan")]}}, r"the value of row 2 is nan"),
    ],
)
def test_feedback_changes_nothing_when_any_of_it_is_wrong(make_set, found, message):
    difficulty = {"selector": "difficulty_based", "selector_args": ARGS["difficulty_based"]}
    scheduler = TasksetScheduler(
        [make_set(7, columns=COLUMNS, **difficulty), make_set(5, name="b")], batch_size=2
    )
    before = scheduler.state_dict()
    good = {0: {"indices": [0], "values": [1.0]}}
    with pytest.raises(InvalidRequest, match=message):
        scheduler.feedback({"selector_metric": {**good, **found}})
    assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("random", r"taskset 'set', selector 'random': a step needs 8 different rows, .* has 7"),
        ("TooFew", r"gave 1 rows instead of 8"),
        ("Outside", r"gave row 7, the set has 7"),
    ],
)
def test_step_is_refused_when_its_selector_cannot_serve_it(make_set, rows_file, selector, message):
    name = selector if selector == "random" else f"{rows_file}:{selector}"
    scheduler = TasksetScheduler([make_set(7, selector=name)], batch_size=8, total_steps=1)
    with pytest.raises(ConfigError, match=message):
        scheduler.read_batch()
    assert scheduler.step == 0


def test_bad_row_is_reported_only_at_the_step_that_reads_it(write_jsonl):
    from explorer_mq.tasksets.settings import TasksetSettings

    file = write_jsonl(*[{"prompt": str(n)} for n in range(5)], "{poison")
    mine = TasksetSettings(name="mine", path=str(file), workflow="my:flow")
    scheduler = TasksetScheduler([mine], batch_size=2)
    assert scheduler.steps_total == 3
    assert len(scheduler.read_batch()) == len(scheduler.read_batch()) == 2
    with pytest.raises(ConfigError, match=r"rows\.jsonl:6: not JSON"):
        scheduler.read_batch()
    assert scheduler.step == 2


@pytest.mark.parametrize(
    ("sets", "numbers", "message"),
    [
        (0, {"batch_size": 1}, r"no taskset to train on"),
        (1, {"batch_size": 0}, r"batch_size must be 1 or more \(got 0\)"),
        (1, {"batch_size": 1, "total_epochs": 0}, r"total_epochs must be 1 or more"),
        (1, {"batch_size": 1, "total_steps": 0}, r"total_steps must be 1 or more"),
        (2, {"batch_size": 1}, r"two tasksets are called 'set'"),
    ],
)
def test_scheduler_is_refused_when_there_is_nothing_to_schedule(make_set, sets, numbers, message):
    with pytest.raises(ConfigError, match=message):
        TasksetScheduler([make_set(7)] * sets, **numbers)


def test_step_before_the_first_is_refused(make_set):
    with pytest.raises(InvalidRequest, match=r"step -1 is before the first one"):
        TasksetScheduler([make_set(7)], batch_size=2).read_batch(-1)
