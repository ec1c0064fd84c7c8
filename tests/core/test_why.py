"""Each standstill has its cause named first, with a command that helps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from explorer_mq.core.runners import RunningTaskState, state_table
from explorer_mq.core.why import (
    BatchFacts,
    Facts,
    PoolFacts,
    TrainerFacts,
    WorkerFacts,
    diagnose,
)

OPEN = BatchFacts(name="7", phase="running", tasks=4, settled=1, awaits_finalize=False)
DONE = replace(OPEN, settled=4, awaits_finalize=True)
WORKER = WorkerFacts(name="w1", state="ready", pools=("default",), slots=4)
QUEUED = PoolFacts(name="default", pending=3, leased=0)
LEASED = PoolFacts(name="default", pending=0, leased=2)
TRAINER = TrainerFacts(name="t", unread=5, held=2)


def running(progress_at, batch="7"):
    return RunningTaskState(
        batch_id=batch,
        task_id=3,
        slice_number=0,
        runner_id="w1/0",
        attempt=2,
        started_at=900.0,
        progress_at=progress_at,
        calls=1,
        tokens=5,
    )


@pytest.mark.parametrize(
    ("facts", "cause", "words"),
    [
        ({"server_error": "gone"}, "server_unreachable", "gone"),
        ({"batches": (replace(OPEN, failure="no space"),)}, "step_fails", "no space"),
        ({"pools": (QUEUED,)}, "no_worker", "3 slices of pool default wait"),
        ({"pools": (LEASED,)}, "silent_worker", "2 slices"),
        (
            {"pools": (QUEUED,), "workers": (replace(WORKER, state="starting"),)},
            "engine_loading",
            "w1 is starting",
        ),
        (
            {"pools": (QUEUED,), "workers": (replace(WORKER, state="updating"),)},
            "paused_for_weights",
            "w1 is updating",
        ),
        (
            {"pools": (QUEUED,), "workers": (replace(WORKER, state="draining"),)},
            "draining",
            "w1 is draining",
        ),
        (
            {"workers": (replace(WORKER, policy_error="bad shape"),), "policy_version": 9},
            "policy_not_loaded",
            "the newest is 9: bad shape",
        ),
        (
            {"pools": (LEASED,), "workers": (replace(WORKER, running=(running(980.0),)),)},
            "straggler",
            "task 3 of batch 7",
        ),
        (
            {"batches": (replace(OPEN, waiting_retries=2, next_retry_in_s=1.5),)},
            "retry_pause",
            "2 retries pause, the next for 1.5 s",
        ),
        ({"batches": (DONE,)}, "not_finalized", "nobody finalizes it"),
        ({"batches": (OPEN,), "trainers": (TRAINER,)}, "trainer_behind", "holds 2 batches"),
        (
            {"pools": (QUEUED,), "workers": (replace(WORKER, running=(running(999.0),)),)},
            "working",
            "1 of 4 slots are busy",
        ),
        ({"batches": ()}, "no_work", "no batch is open"),
    ],
)
def test_cause_is_named(facts, cause, words):
    found = diagnose(Facts(run="r", now=1000.0, **{"batches": (OPEN,), **facts}))
    assert found[0].cause == cause
    assert words in found[0].text
    assert found[0].remedy


def test_worker_of_another_pool_does_not_help():
    facts = Facts(
        run="r",
        now=1.0,
        batches=(OPEN,),
        pools=(QUEUED,),
        workers=(replace(WORKER, pools=("big",)),),
    )
    (finding,) = diagnose(facts)
    assert finding.remedy == "explorer-mq worker --run r --worker.pools default"


def test_silent_and_missing_workers_are_both_named():
    pool = PoolFacts(name="default", pending=1, leased=1)
    found = diagnose(Facts(run="r", now=1.0, batches=(OPEN,), pools=(pool,)))
    assert [one.cause for one in found] == ["silent_worker", "no_worker"]


def test_longest_still_stragglers_come_first_and_only_five():
    states = tuple(running(900.0 + number, batch=str(number)) for number in range(8))
    facts = Facts(run="r", now=1000.0, batches=(OPEN,), workers=(replace(WORKER, running=states),))
    found = diagnose(facts)
    assert [one.text.split()[4] for one in found] == ["0", "1", "2", "3", "4"]


def test_state_table_is_aligned():
    table = state_table({"w/1": {"begin_time": 10.0, "a": 1}, "w/0": {"b": "xyz"}}, now=12.5)
    assert table.splitlines() == [
        "runner_id | a | b   | begin_time | running_time",
        "w/0       | - | xyz | -          | -",
        "w/1       | 1 | -   | 10.0       | 2.5",
    ]
