"""Each standstill has its cause named first, with a command that helps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from explorer_mq.core.runners import RunningTaskState
from explorer_mq.core.why import (
    BatchFacts,
    Facts,
    Finding,
    PoolFacts,
    TrainerFacts,
    WorkerFacts,
    diagnose,
)

OPEN = BatchFacts(name="7", phase="running", tasks=4, settled=1, awaits_finalize=False)
DONE = replace(OPEN, settled=4, awaits_finalize=True)
WORKER = WorkerFacts(name="w1", state="ready", pools=("default",), slots=4)
STARTING = replace(WORKER, name="w2", state="starting")
DRAINING = replace(WORKER, name="w2", state="draining")
QUEUED = PoolFacts(name="default", pending=3, leased=0)
LEASED = PoolFacts(name="default", pending=0, leased=2)
TRAINER = TrainerFacts(name="t", unread=5, held=2)


def running(progress_at, batch="7"):
    return RunningTaskState(
        batch_id=batch,
        task_id=3,
        slice_number=4,
        runner_id="w1/0",
        attempt=2,
        started_at=900.0,
        progress_at=progress_at,
        calls=1,
        tokens=5,
    )


@pytest.mark.parametrize(
    ("facts", "finding"),
    [
        (
            {"server_error": "gone"},
            Finding(
                "server_unreachable",
                "the NATS server does not answer: gone",
                "explorer-mq doctor; then start the server, e.g. explorer-mq nats",
            ),
        ),
        (
            {"batches": (replace(OPEN, failure="no space"),)},
            Finding(
                "step_fails",
                "batch 7 is running and its next step fails: no space",
                "explorer-mq batch show 7; free space on the server if its store is full",
            ),
        ),
        (
            {"pools": (QUEUED,)},
            Finding(
                "no_worker",
                "3 slices of pool default wait, but no worker serves it",
                "explorer-mq worker --run r --worker.pools default",
            ),
        ),
        (
            {"pools": (LEASED,)},
            Finding(
                "silent_worker",
                "2 slices of pool default are leased to workers that are not heard; they come back "
                "when their leases run out",
                "explorer-mq worker --run r --worker.pools default",
            ),
        ),
        (
            {"pools": (QUEUED,), "workers": (replace(WORKER, state="starting"), DRAINING)},
            Finding(
                "engine_loading",
                "3 slices of pool default wait until an engine is loaded: w1 is starting, w2 is "
                "draining",
                "explorer-mq worker ls",
            ),
        ),
        (
            {"pools": (QUEUED,), "workers": (replace(WORKER, state="updating"), STARTING)},
            Finding(
                "paused_for_weights",
                "3 slices of pool default wait while weights are swapped: w1 is updating, w2 is "
                "starting",
                "explorer-mq worker ls",
            ),
        ),
        (
            {"pools": (QUEUED,), "workers": (DRAINING,)},
            Finding(
                "draining",
                "3 slices of pool default wait, but every worker is ending: w2 is draining",
                "explorer-mq worker --worker.pools default",
            ),
        ),
        (
            {
                "workers": (replace(WORKER, policy_error="bad shape", policy_version=8), WORKER),
                "policy_version": 9,
            },
            Finding(
                "policy_not_loaded",
                "worker w1 is at policy version 8, the newest is 9: bad shape",
                "explorer-mq worker ls; publish the weights again",
            ),
        ),
        (
            {"pools": (LEASED,), "workers": (replace(WORKER, running=(running(990.0),)),)},
            Finding(
                "straggler",
                "task 3 of batch 7 (slice 4, attempt 2) on worker w1 has run for 100 s, the last "
                "10 s without a token or model call",
                "explorer-mq batch show 7; or lower scheduler.stall_timeout_s",
            ),
        ),
        (
            {"batches": (replace(OPEN, waiting_retries=2, next_retry_in_s=1.25),)},
            Finding(
                "retry_pause",
                "batch 7: 2 retries pause, the next for 1.2 s",
                "explorer-mq batch show 7",
            ),
        ),
        (
            {"batches": (OPEN, DONE)},
            Finding(
                "not_finalized",
                "batch 7: all 4 tasks are settled, but nobody finalizes it",
                "explorer-mq batch finalize 7 --run r",
            ),
        ),
        (
            {"trainers": (TRAINER,)},
            Finding(
                "trainer_behind",
                "trainer t holds 2 batches without an acknowledgement and has 5 more to read",
                "look at the trainer: it acknowledges a batch after its optimizer step",
            ),
        ),
        (
            {
                "batches": (OPEN, replace(OPEN, name="8", tasks=2)),
                "pools": (QUEUED, replace(LEASED, pending=2)),
                "workers": (replace(WORKER, running=(running(991.0),)), replace(WORKER, name="w3")),
            },
            Finding(
                "working",
                "work goes on: 4 tasks of 2 batches are open, 1 of 8 slots are busy, 5 slices wait",
                "explorer-mq status",
            ),
        ),
        (
            {"batches": ()},
            Finding(
                "no_work",
                "no batch is open: every batch that was submitted is over",
                "explorer-mq submit TASKS.jsonl --run r",
            ),
        ),
    ],
)
def test_cause_is_named_with_what_helps(facts, finding):
    assert diagnose(Facts(run="r", now=1000.0, **{"batches": (OPEN,), **facts}))[0] == finding


@pytest.mark.parametrize(
    "facts",
    [
        {"batches": (replace(OPEN, waiting_retries=2),)},
        {"batches": (replace(OPEN, next_retry_in_s=2.0),)},
        {"batches": (replace(DONE, awaits_finalize=False),)},
        {"batches": (replace(DONE, phase="pending"),)},
        {"batches": (replace(DONE, settled=3),)},
        {"pools": (QUEUED, LEASED), "workers": (DRAINING, WORKER)},
        {"pools": (replace(LEASED, leased=0),)},
        {"trainers": (replace(TRAINER, held=0, unread=0),)},
    ],
)
def test_nothing_is_blamed_that_is_in_order(facts):
    (found,) = diagnose(Facts(run="r", now=1000.0, **{"batches": (OPEN,), **facts}))
    assert found.cause == "working"


@pytest.mark.parametrize("trainer", [replace(TRAINER, held=0), replace(TRAINER, unread=0)])
def test_trainer_that_holds_or_has_not_read_is_behind(trainer):
    (found,) = diagnose(Facts(run="r", now=1.0, batches=(OPEN,), trainers=(trainer,)))
    assert found.cause == "trainer_behind"


def test_all_causes_are_named_in_order_of_likelihood():
    stuck = replace(OPEN, failure="x", waiting_retries=1, next_retry_in_s=1.0)
    facts = Facts(
        run="r",
        now=1000.0,
        batches=(stuck, DONE),
        pools=(PoolFacts(name="empty", pending=0, leased=0), replace(QUEUED, name="big"), QUEUED),
        workers=(replace(WORKER, state="updating", policy_error="e", running=(running(1.0),)),),
        trainers=(TRAINER,),
    )
    assert [one.cause for one in diagnose(facts)] == [
        "step_fails",
        "no_worker",
        "paused_for_weights",
        "policy_not_loaded",
        "straggler",
        "retry_pause",
        "not_finalized",
        "trainer_behind",
    ]
    idle = [one.cause for one in diagnose(replace(facts, batches=(), pools=()))]
    assert idle == ["policy_not_loaded", "straggler", "trainer_behind", "no_work"]


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
