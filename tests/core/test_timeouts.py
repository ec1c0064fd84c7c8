"""Dynamic time-outs: mean of successes, by kind and number of runs, over a window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.core.timeouts import TimeoutHistory, attempt_timeout_s, durations_of
from explorer_mq_schemas.timeouts import AttemptTimeouts

MEANS = AttemptTimeouts(ratio=3.0, train={2: 1.0, 8: 3.0}, eval={1: 10.0})


def test_durations_are_summed_by_number_of_runs():
    assert durations_of([(2, 1.0), (8, 4.0), (2, 2.0)]) == {2: (2, 3.0), 8: (1, 4.0)}


def test_only_the_newest_batches_count():
    history = TimeoutHistory(window=2)
    for seconds in (100.0, 1.0, 3.0):
        history = history.add("train", {4: (1, seconds)}, complete=True)
    history = history.add("eval", {4: (2, 18.0)}, complete=True)
    assert history.means("train") == {4: 2.0}
    assert history.means("eval") == {4: 9.0}
    assert history.steps == 3


def test_only_batches_seen_to_their_end_are_warm_up():
    """Decision 12: neither cut-off batches nor evals are steps."""
    history = TimeoutHistory(window=9)
    history = history.add("train", {1: (1, 1.0)}, complete=False)
    history = history.add("eval", {1: (1, 1.0)}, complete=True)
    waiting = history.timeouts(ratio=3.0, warmup_min_steps=1)
    assert (waiting.train, waiting.eval) == ({}, {})
    warm = history.add("train", {1: (1, 3.0)}, complete=True)
    found = warm.timeouts(ratio=3.0, warmup_min_steps=1)
    assert (found.train, found.eval, found.ratio) == ({1: 2.0}, {1: 1.0}, 3.0)


def test_batches_without_a_success_say_nothing():
    history = TimeoutHistory(window=9).add("train", {}, complete=True)
    assert history.means("train") == {}
    assert history.add("train", {3: (0, 0.0)}, complete=True).means("train") == {}


def test_means_weigh_every_attempt_alike():
    history = TimeoutHistory(window=9)
    history = history.add("train", {4: (5, 3.0), 1: (1, 0.5)}, complete=True)
    history = history.add("train", {4: (1, 15.0)}, complete=True)
    assert history.means("train") == {1: 0.5, 4: 3.0}
    assert list(history.means("train")) == [1, 4]


def test_timeouts_are_apart_for_train_and_eval():
    history = TimeoutHistory(window=9).add("train", {1: (1, 2.0)}, complete=True)
    history = history.add("eval", {1: (1, 5.0)}, complete=True)
    found = history.timeouts(ratio=2.0, warmup_min_steps=0)
    assert found == AttemptTimeouts(ratio=2.0, train={1: 2.0}, eval={1: 5.0})
    assert history.timeouts(ratio=2.0, warmup_min_steps=2) == AttemptTimeouts(ratio=2.0)


@pytest.mark.parametrize(
    ("is_eval", "runs", "seconds"),
    [
        (False, 2, 3.0),
        (False, 1, 3.0),  # borrows from two runs
        (False, 3, 9.0),  # borrows from eight
        (False, 8, 9.0),
        (False, 16, 18.0),  # as if twice eight came one after the other
        (True, 1, 30.0),
        (True, 4, 100.0),
    ],
)
def test_timeout_of_an_attempt(is_eval, runs, seconds):
    found = attempt_timeout_s(MEANS, is_eval=is_eval, runs=runs, limit_s=100.0)
    assert found == seconds


@given(st.floats(0.1, 1000), st.integers(1, 64), st.booleans())
def test_limit_is_never_exceeded(limit_s, runs, is_eval):
    assert attempt_timeout_s(MEANS, is_eval=is_eval, runs=runs, limit_s=limit_s) <= limit_s
    assert attempt_timeout_s(None, is_eval=is_eval, runs=runs, limit_s=limit_s) == limit_s
    empty = AttemptTimeouts(ratio=1.0)
    assert attempt_timeout_s(empty, is_eval=is_eval, runs=runs, limit_s=limit_s) == limit_s
