"""pass@k by hand, and where it appears among the metrics."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import pytest

from explorer_mq.core.metrics import (
    aggregate_eval_metrics,
    calculate_task_level_metrics,
    pass_at_k,
)


@pytest.mark.parametrize(
    ("correct", "total", "k", "wanted"),
    [
        (0, 6, 4, 0.0),
        (6, 6, 1, 1.0),
        (1, 2, 1, 1 / 2),
        (1, 2, 2, 1.0),
        (1, 4, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (2, 5, 2, 7 / 10),  # 1 - C(3,2)/C(5,2) = 1 - 3/10
        (4, 6, 2, 14 / 15),  # 1 - C(2,2)/C(6,2) = 1 - 1/15
        (4, 6, 4, 1.0),  # two wrong ones cannot fill four places
        (3, 10, 5, 11 / 12),  # 1 - C(7,5)/C(10,5) = 1 - 21/252
        (1, 200, 100, 1 / 2),
    ],
)
def test_pass_at_k_is_what_one_counts_by_hand(correct, total, k, wanted):
    assert pass_at_k(correct, total, k) == wanted


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample():
    for total in range(1, 8):
        for correct in range(total + 1):
            samples = [1] * correct + [0] * (total - correct)
            for k in range(1, total + 1):
                draws = list(combinations(samples, k))
                share = Fraction(sum(any(draw) for draw in draws), len(draws))
                assert pass_at_k(correct, total, k) == float(share)


def test_pass_at_k_stays_exact_where_floats_would_not():
    assert pass_at_k(1, 10**6, 1) == 1e-6
    assert pass_at_k(1, 5000, 2500) == 0.5  # the binomials have some 1500 digits
    assert pass_at_k(50, 5000, 2500) == pytest.approx(1 - 2**-50, abs=1e-15)
    assert all(math.isfinite(pass_at_k(c, 2000, 1000)) for c in (0, 1, 999, 2000))


@pytest.mark.parametrize(
    ("correct", "total", "k"), [(-1, 4, 1), (5, 4, 1), (1, 4, 0), (1, 4, 5), (0, 0, 1)]
)
def test_pass_at_k_refuses_what_has_no_meaning(correct, total, k):
    with pytest.raises(ValueError, match=rf"pass@{k} of {correct} in {total}"):
        pass_at_k(correct, total, k)


def of_task(values, repeat_times=None, key="accuracy"):
    rows = [{key: value} for value in values]
    return calculate_task_level_metrics(rows, is_eval=True, repeat_times=repeat_times)


def passes(metrics):
    return {key: value for key, value in metrics.items() if "/pass@" in key}


def test_eval_metrics_have_pass_at_the_sizes_of_best():
    found = of_task([0, 1, 1, 0, 1, 1])
    assert passes(found) == {
        "accuracy/pass@2": 14 / 15,
        "accuracy/pass@4": 1.0,
        "accuracy/pass@6": 1.0,
    }
    assert {key.replace("pass", "best") for key in passes(found)} == {
        key for key in found if "/best@" in key
    }


@pytest.mark.parametrize("values", [[0, 0.5, 1, 1], [0, 2], [-1, 1], [1.0, float("nan")]])
def test_eval_metrics_have_no_pass_for_values_that_are_not_all_0_or_1(values):
    assert passes(of_task(values)) == {}


def test_eval_metrics_have_no_pass_for_one_run_times_and_train_batches():
    assert passes(of_task([1])) == {}
    assert passes(of_task([1, 0], key="time/run_execution")) == {}
    assert passes(calculate_task_level_metrics([{"r": 1}, {"r": 0}], is_eval=False)) == {}


def test_failed_runs_leave_an_estimate_from_those_that_were_seen():
    found = of_task([1, 0, 0], repeat_times=4)
    assert passes(found) == {"accuracy/pass@2": 2 / 3, "accuracy/pass@4": 1.0}
    assert passes(of_task([0, 0, 0], repeat_times=4))["accuracy/pass@4"] == 0.0
    assert passes(of_task([True], repeat_times=2)) == {"accuracy/pass@2": 1.0}


def test_a_batch_has_pass_only_if_all_its_tasks_have():
    binary, graded = of_task([0, 1]), of_task([0, 0.5])
    assert (
        aggregate_eval_metrics([binary, of_task([0, 0])], "eval/s")["eval/s/accuracy/pass@2"] == 0.5
    )
    for detailed in (False, True):
        mixed = aggregate_eval_metrics([binary, graded], "eval/s", detailed_stats=detailed)
        assert passes(mixed) == {}
        assert any("/best@2" in key for key in mixed)
