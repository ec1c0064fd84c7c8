"""Selectors: their orders, that the position alone decides, and what they refuse."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.tasksets.selectors.opening import BUILT_IN, open_selector
from explorer_mq.tasksets.sources.opening import open_source
from explorer_mq_schemas.errors import ConfigError

FEATURES = {"weak": [0.1, 0.5, 0.3], "strong": [0.9, 0.6, 0.3, 0.8]}
ARGS = {
    "offline_easy2hard": {"feature_keys": ["weak", "strong"]},
    "difficulty_based": {"feature_keys": ["weak", "strong"]},
}


@pytest.fixture(scope="session")
def select(make_set):
    """A selector over ``rows`` rows."""

    def build(name, rows=7, *, seed=42, columns=None, **args):
        given = {**ARGS.get(name, {}), **args}
        columns = FEATURES if columns is None else columns
        settings = make_set(rows, columns=columns, selector=name, selector_args=given, seed=seed)
        return open_selector(settings, open_source(settings))

    return build


def test_sequential_goes_round(select):
    selector = select("sequential", 5)
    assert selector.select(0, 3) == [0, 1, 2]
    assert selector.select(3, 4) == [3, 4, 0, 1]
    assert selector.select(8, 12) == [3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_shuffle_takes_every_row_once_an_epoch_when_batches_span_epochs(select):
    selector = select("shuffle", 7)
    taken = [number for start in range(0, 21, 3) for number in selector.select(start, 3)]
    epochs = [taken[:7], taken[7:14], taken[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    expected = [np.random.default_rng(42 + epoch).permutation(7).tolist() for epoch in range(3)]
    assert epochs == expected


def test_generators_are_the_same_in_every_version_of_numpy():
    """The order is part of a run: numpy must not change it under a run that is resumed."""
    assert np.random.default_rng(42).permutation(7).tolist() == [3, 2, 6, 4, 1, 5, 0]
    assert np.random.default_rng(42).choice(7, 3, replace=False).tolist() == [6, 0, 4]
    ids = np.repeat(np.arange(2, dtype=np.int32), [3, 3])
    np.random.default_rng(1).shuffle(ids)
    assert ids.tolist() == [1, 0, 0, 0, 1, 1]


def test_random_draws_no_row_twice_in_a_step_but_steps_anew(select):
    selector = select("random", 7)
    steps = [selector.select(start, 5) for start in range(0, 50, 5)]
    assert all(len(set(step)) == 5 for step in steps)
    assert len({tuple(step) for step in steps}) > 1
    assert steps[1] == np.random.default_rng(42 + 5).choice(7, 5, replace=False).tolist()


@pytest.mark.parametrize("name", ["random", "difficulty_based"])
def test_selector_refuses_when_a_step_needs_more_rows_than_there_are(select, name):
    selector = select(name, 7)
    assert sorted(selector.select(0, 7)) == list(range(7))
    with pytest.raises(ConfigError, match=r"a step needs 8 different rows, the set has 7"):
        selector.select(0, 8)


def test_easy2hard_goes_from_the_highest_features_to_the_lowest_and_again(select):
    columns = {"a": [1, 3, 3, 2, 1], "b": [9, 1, 2, 0, 9]}
    selector = select("offline_easy2hard", 5, columns=columns, feature_keys=["a", "b"])
    reference = sorted([a, b, n] for n, (a, b) in enumerate(zip(*columns.values(), strict=True)))
    expected = [row[-1] for row in reversed(reference)]
    assert expected == [2, 1, 3, 4, 0]
    assert selector.select(0, 5) == expected
    assert selector.select(3, 4) == [4, 0, 2, 1]


@given(
    name=st.sampled_from(sorted(BUILT_IN)),
    rows=st.integers(1, 12),
    seed=st.integers(0, 5),
    positions=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    count=st.integers(1, 12),
    noise=st.integers(0, 9),
)
def test_selection_depends_on_nothing_but_position_and_state(
    select, name, rows, seed, positions, count, noise
):
    count = min(count, rows)
    one, other = select(name, rows, seed=seed), select(name, rows, seed=seed)
    expected = {position: one.select(position, count) for position in positions}
    random.seed(noise)
    np.random.seed(noise)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for position in reversed(positions):
        found = other.select(position, count)
        assert found == expected[position]
        assert len(found) == count
        assert all(type(number) is int and 0 <= number < rows for number in found)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("sequential", {"feature_keys": ["weak"]}, r"selector_args\.feature_keys: Extra inputs"),
        ("shuffle", {"sed": 1}, r"selector_args\.sed: Extra inputs"),
        ("offline_easy2hard", {"feature_keys": []}, r"selector_args\.feature_keys: "),
        ("offline_easy2hard", {"feature_keys": ["none"]}, r"row 0: feature 'none' is None; exp"),
        ("offline_easy2hard", {"feature_keys": ["prompt"]}, r"row 0: feature 'prompt' is 'p0'"),
        ("difficulty_based", {"feature_keys": ["weak"]}, r"exactly 2 keys are needed.*got \['w"),
        ("difficulty_based", {"feature_keys": ["weak"] * 3}, r"exactly 2 keys are needed"),
        ("difficulty_based", {"tau": -1}, r"selector_args\.tau: "),
        ("difficulty_based", {"taw": 1}, r"selector_args\.taw: Extra inputs"),
    ],
)
def test_selector_says_what_is_wrong_with_its_arguments(select, name, args, message):
    with pytest.raises(ConfigError, match=rf"taskset 'set', selector '{name}': .*{message}"):
        select(name, **args)


def test_selector_refuses_features_that_are_not_finite(select):
    columns = {"weak": [0.5, float("nan")]}
    with pytest.raises(ConfigError, match=r"row 1: feature 'weak' is nan"):
        select("offline_easy2hard", columns=columns, feature_keys=["weak"])


def test_selector_is_named_with_the_nearest_when_there_is_none(select):
    with pytest.raises(ConfigError, match=r"no selector 'shufle'; did you mean 'shuffle'\?"):
        select("shufle")


def test_selector_is_the_users_when_named_by_file(select, rows_file):
    assert select(f"{rows_file}:Backwards").select(0, 3) == [6, 5, 4]
    with pytest.raises(ConfigError, match=r"selector .*rows\.py:make': TypeError"):
        select(f"{rows_file}:make")


def test_stateless_selectors_refuse_the_state_of_another(select):
    state = select("difficulty_based").state_dict()
    with pytest.raises(ConfigError, match=r"has no state"):
        select("shuffle").load_state_dict(state)
