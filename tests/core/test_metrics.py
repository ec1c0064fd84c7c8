"""The metric grammar, with the reference's golden values."""

from __future__ import annotations

import numpy as np
import pytest

from explorer_mq.core.metrics import (
    aggregate_eval_metrics,
    aggregate_metrics,
    aggregate_run_level_metrics,
    as_number,
    bootstrap_metric,
    calculate_task_level_metrics,
)
from explorer_mq_schemas.errors import ContractError


def test_eval_metrics_match_the_golden_values():
    rows = [{"r": value} for value in (0, 1, 1, 0, 1, 1)]
    found = calculate_task_level_metrics(rows, is_eval=True, repeat_times=6)
    wanted = {
        "r/mean@6": 0.6667,
        "r/std@6": 0.4714,
        "r/best@2": 0.878,
        "r/worst@2": 0.444,
        "r/best@4": 0.987,
        "r/worst@4": 0.194,
        "r/best@6": 0.999,
        "r/worst@6": 0.089,
        "r/pass@2": 14 / 15,
        "r/pass@4": 1.0,
        "r/pass@6": 1.0,
    }
    assert found == pytest.approx(wanted, abs=1e-4)


def test_bootstrap_leaves_the_global_generator_alone():
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    assert bootstrap_metric([0, 1], 2) == pytest.approx((0.754, 0.23))
    assert np.random.rand() == expected


def test_eval_metrics_are_named_by_repeat_times_when_runs_failed():
    found = calculate_task_level_metrics([{"r": 1.0}] * 5, is_eval=True, repeat_times=6)
    assert {"r/mean@6", "r/best@6"} <= found.keys()


def test_aggregations_follow_the_suffix():
    rows = [{"a": 1, "b:sum": 2, "c:last": 3, "d:x": 4}, {"a:mean": 3, "b:sum": 5, "c:last": 9}]
    assert aggregate_run_level_metrics(rows) == {"a": 2.0, "b:sum": 7.0, "c:last": 9.0, "d:x": 4.0}
    found = aggregate_metrics(rows, "rollout")
    assert found["rollout/a/max"] == 3.0
    assert found["rollout/b/sum"] == 7.0
    assert "rollout/b/mean" not in found
    assert aggregate_eval_metrics([{"x": 1.0}, {"x": 3.0}], "eval/s", detailed_stats=True) == {
        "eval/s/x/mean": 2.0,
        "eval/s/x/max": 3.0,
        "eval/s/x/min": 1.0,
        "eval/s/x/std": 1.0,
    }
    assert aggregate_metrics([], "rollout") == {}


def test_numpy_scalars_count_and_others_are_named():
    assert aggregate_run_level_metrics([{"a": np.float32(2)}, {"a": np.int64(4)}]) == {"a": 3.0}
    with pytest.raises(ContractError, match="'bad'"):
        aggregate_run_level_metrics([{"bad": "text"}])


def test_task_metrics_of_an_eval_keep_other_aggregations_and_mean_times():
    rows = [
        {"n:sum": 1, "t:last": 3, "time/run_execution": 2.0, "my/time/task_execution_s": 1.0},
        {"n:sum": 4, "t:last": 7, "time/run_execution": 4.0, "my/time/task_execution_s": 4.0},
    ]
    assert calculate_task_level_metrics(rows, is_eval=True, repeat_times=4) == {
        "n:sum": 5.0,
        "t:last": 7.0,
        "time/run_execution": 3.0,
        "my/time/task_execution_s": 2.5,
    }
    assert calculate_task_level_metrics(rows, is_eval=False)["n:sum"] == 5.0


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (8, [2, 4, 8]), (9, [2, 4, 8, 9])],
)
def test_best_of_k_is_told_for_powers_of_two_and_all(count, sizes):
    found = calculate_task_level_metrics([{"r": 1.0}] * count, is_eval=True)
    assert found == {
        f"r/mean@{count}": 1.0,
        f"r/std@{count}": 0.0,
        **{f"r/{kind}@{size}": 1.0 for size in sizes for kind in ("best", "worst", "pass")},
    }


def test_batch_metrics_have_three_kinds_of_a_mean_and_one_of_the_rest():
    rows = [{"a": 1.0, "b:min": 5, "c:x:max": 1}, {"a": 4.0, "b:min": 2, "c:x:max": 3}, {"sum": 8}]
    assert aggregate_metrics(rows) == {
        "rollout/a/mean": 2.5,
        "rollout/a/max": 4.0,
        "rollout/a/min": 1.0,
        "rollout/b/min": 2.0,
        "rollout/c:x/max": 3.0,
        "rollout/sum/mean": 8.0,
        "rollout/sum/max": 8.0,
        "rollout/sum/min": 8.0,
    }
    assert aggregate_eval_metrics(rows[:2], "p") == {"p/a": 2.5, "p/b": 3.5, "p/c:x": 2.0}


def test_last_is_the_last_of_all_rows():
    rows = [{"a:last": value} for value in (1, 2, 3)]
    assert aggregate_run_level_metrics(rows) == {"a:last": 3.0}


class Scalar:
    """What torch's tensors of one number look like; of several, ``item`` raises."""

    def __init__(self, answer):
        self.answer = answer

    def item(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_scalars_of_other_libraries_count():
    assert as_number("a", Scalar(2)) == 2.0
    assert as_number("a", np.array([3.5])) == 3.5
    assert as_number("a", True) == 1.0


@pytest.mark.parametrize(
    "value", [Scalar(kind("no")) for kind in (TypeError, ValueError, RuntimeError)]
)
def test_arrays_of_several_numbers_are_named(value):
    with pytest.raises(ContractError, match=r"^metric 'a' is <.*>; metrics are real numbers$"):
        as_number("a", value)


def test_pass_at_k_of_some_tasks_only_is_left_out_alone():
    rows = [{"r/best@2": 1.0, "r/pass@2": 1.0, "z": 1.0}, {"r/best@2": 0.0, "z": 3.0}]
    assert aggregate_eval_metrics(rows, "p") == {"p/r/best@2": 0.5, "p/z": 2.0}
