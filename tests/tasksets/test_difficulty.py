"""The difficulty_based selector: formula, convergence, and a state that loses nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.tasksets.selectors.opening import open_selector
from explorer_mq.tasksets.selectors.pass_rates import PassRates
from explorer_mq.tasksets.sources.opening import open_source
from explorer_mq_schemas.errors import ConfigError

ANCHORS = np.array([[0.0, 0.8], [0.2, 0.6], [0.5, 0.5], [0.9, 1.0]])


def rates(anchors=ANCHORS, *, m=16, lamb=0.2, rho=0.2):
    return PassRates(np.array(anchors), m=m, lamb=lamb, rho=rho)


@pytest.fixture(scope="session")
def difficulty(make_set):
    def build(anchors=ANCHORS, seed=42, **args):
        columns = {"weak": [a[0] for a in anchors], "strong": [a[1] for a in anchors]}
        settings = make_set(
            len(anchors),
            columns=columns,
            selector="difficulty_based",
            selector_args={"feature_keys": ["weak", "strong"], **args},
            seed=seed,
        )
        return open_selector(settings, open_source(settings))

    return build


def test_pass_rates_are_one_half_when_nothing_was_seen():
    assert rates().mean().tolist() == [0.5] * 4


def test_posterior_follows_the_formula_when_rows_are_seen():
    """Worked out by hand from the formula in the module."""
    found = rates()
    found.observe([0, 1], [0.5, 0.3])
    capability = (0.4 - 0.1) / (0.7 - 0.1 + 1e-6)
    expected = np.array([0.5, 0.3, 0.5, 0.9 + 0.1 * capability])
    seen = np.array([0.5, 0.3, 0, 0])
    missed = np.array([0.5, 0.7, 0, 0])
    alphas = 0.8 + 0.2 + 0.8 * 16 * seen + 0.2 * 16 * expected
    betas = 0.8 + 0.2 + 0.8 * 16 * missed + 0.2 * 16 * (1 - expected)
    np.testing.assert_allclose(found.mean(), alphas / (alphas + betas), rtol=1e-6)

    found.observe([3], [1.0])
    again = (1.0 - 0.9) / (1.0 - 0.9 + 1e-6)
    capability = 0.9 * capability + 0.1 * again
    weak, strong = ANCHORS.T
    expected = np.clip(weak + capability * (strong - weak), 0, 1)
    expected[3] = 1.0
    alphas = 0.8 * alphas + 0.2 + 0.2 * 16 * expected + np.array([0, 0, 0, 0.8 * 16])
    betas = 0.8 * betas + 0.2 + 0.2 * 16 * (1 - expected)
    np.testing.assert_allclose(found.mean(), alphas / (alphas + betas), rtol=1e-6)


def test_pass_rates_approach_what_is_seen_again_and_again():
    found = rates(lamb=0.2, rho=0.2)
    for _ in range(30):
        found.observe([0, 1, 2, 3], [0.25, 0.75, 0.0, 1.0])
    np.testing.assert_allclose(found.mean(), [0.25, 0.75, 0.0, 1.0], atol=0.02)


def test_unseen_rows_move_with_the_capability_of_the_model():
    weak_model, strong_model = rates(), rates()
    weak_model.observe([1], [0.2])
    strong_model.observe([1], [0.6])
    assert weak_model.mean()[0] < 0.5 < strong_model.mean()[0]


def test_rows_whose_anchors_are_equal_say_nothing_about_the_capability():
    found = rates()
    found.observe([2], [1.0])
    assert np.all(np.isfinite(found.mean()))
    assert found.state_dict()["capability"] is None
    found.observe([1], [0.6])
    assert found.state_dict()["capability"] == pytest.approx(1.0, abs=1e-5)


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 3), st.floats(-5, 5)),
            max_size=5,
        ),
        max_size=6,
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_posteriors_stay_proper_whatever_is_seen(steps, lamb, rho):
    found = rates(lamb=lamb, rho=rho)
    for step in steps:
        found.observe([number for number, _ in step], [value for _, value in step])
    means = found.mean()
    assert np.all((means >= 0) & (means <= 1))
    drawn = found.sample(np.random.default_rng(0))
    assert np.all((drawn >= 0) & (drawn <= 1))


@given(st.permutations([(0, 0.2), (1, 1.0), (1, 0.5), (3, 0.9)]))
def test_the_order_of_rows_in_a_step_does_not_matter(pairs):
    found, sorted_ = rates(), rates()
    found.observe([n for n, _ in pairs], [v for _, v in pairs])
    sorted_.observe([0, 1, 3], [0.2, 0.75, 0.9])
    np.testing.assert_allclose(found.mean(), sorted_.mean(), rtol=1e-6)


def test_best_rows_come_first_when_tau_is_zero(difficulty):
    selector = difficulty(tau=0, target_reward=0.5)
    assert selector.select(0, 2) == [0, 1]
    for _ in range(20):
        selector.feedback([0, 1, 2, 3], [0.1, 1.0, 0.6, 0.45])
    assert selector.select(0, 4) == [3, 2, 0, 1]
    assert selector.select(99, 2) == [3, 2]


def test_equal_rows_come_in_their_order_when_tau_is_zero(difficulty):
    selector = difficulty([[0.0, 1.0], [0.5, 1.0]] * 250, tau=0)
    assert selector.select(0, 100) == list(range(100))
    selector.feedback([0], [0.0])
    assert selector.select(0, 500) == [*range(1, 500, 2), *range(2, 500, 2), 0]


def test_close_rows_are_drawn_more_often_when_tau_is_positive(difficulty):
    """Draws follow softmax(score / tau): two rows, scores -0 and about -1."""
    selector = difficulty([[0.0, 0.5], [0.0, 0.5]], tau=0.5, lamb=0.0, rho=0.0, m=1e6)
    selector.feedback([0, 1], [1.0, 0.0])
    first = [selector.select(position, 1)[0] for position in range(2000)]
    expected = 1 / (1 + np.exp(-1 / 0.5))
    assert first.count(0) / 2000 == pytest.approx(expected, abs=0.03)


def test_pass_rates_are_drawn_when_do_sample_is_set(difficulty):
    selector = difficulty(tau=0, do_sample=True)
    chosen = {tuple(selector.select(position, 2)) for position in range(30)}
    assert len(chosen) > 3
    assert selector.select(5, 2) == difficulty(tau=0, do_sample=True).select(5, 2)


def test_state_is_exact_and_compact_when_it_is_json():
    """100,000 rows of 16 rollouts, 100 steps of 64: small enough for one message."""
    rng = np.random.default_rng(0)
    anchors = np.sort(rng.integers(0, 17, (100_000, 2)) / 16, axis=1)
    found = rates(anchors)
    for _ in range(100):
        numbers = rng.choice(100_000, 64, replace=False)
        found.observe(numbers.tolist(), (rng.integers(0, 17, 64) / 16).tolist())
    text = json.dumps(found.state_dict())
    assert len(text) < 500_000
    again = rates(anchors)
    again.load_state_dict(json.loads(text))
    assert again.mean().tobytes() == found.mean().tobytes()
    assert again.state_dict() == found.state_dict()


def test_state_is_refused_when_it_is_of_another_set():
    other = rates(ANCHORS[:3])
    with pytest.raises(ConfigError, match=r"of 4 rows, the set has 3"):
        other.load_state_dict(rates().state_dict())
    with pytest.raises(ConfigError, match=r"no state of pass rates"):
        other.load_state_dict({})
    with pytest.raises(ConfigError, match=r"no state of pass rates"):
        other.load_state_dict({"alphas": "?", "betas": "", "capability": 0.5})
