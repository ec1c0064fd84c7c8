"""The metric grammar, with the reference's golden values."""

from __future__ import annotations

import numpy as np
import pytest

from explorer_mq.core.metrics import (
    aggregate_eval_metrics,
    aggregate_metrics,
    aggregate_run_level_metrics,
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
