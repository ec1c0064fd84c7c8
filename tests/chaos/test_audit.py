"""The audit must be able to fail: each kind of harm, done on purpose, is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from explorer_mq.chaos.audit import Accepted, Delivery, Submitted, audit

PAIRS = ((0, 0), (0, 1), (1, 0))
BATCH = Submitted("b", is_train=True, expected=frozenset(PAIRS), runs=3, state="finalized")
WHOLE = Delivery(
    trainer="t",
    batch="b",
    digest="d",
    is_acked=True,
    pairs=PAIRS,
    origins=("b/0", "b/0", "b/1"),
    seqs=(5, 7),
    experiences=3,
    runs=3,
    completed_runs=3,
)
RESULTS = (Accepted("b", 0, 0, 5, 2), Accepted("b", 1, 0, 7, 1))


def check(*deliveries, batches=(BATCH,), results=RESULTS, trainers=("t",)):
    return audit(batches, deliveries, results, trainers=trainers)


def without(delivery, at):
    """The delivery without one experience, its manifest in step with it."""
    keep = [index for index in range(len(delivery.pairs)) if index != at]
    return replace(
        delivery,
        pairs=tuple(delivery.pairs[index] for index in keep),
        origins=tuple(delivery.origins[index] for index in keep),
        experiences=delivery.experiences - 1,
        completed_runs=delivery.completed_runs - 1,
    )


def test_a_whole_delivery_has_no_faults():
    found = check(WHOLE)
    assert (found.lost, found.duplicates, found.inconsistent) == ([], [], [])


@pytest.mark.parametrize("at", range(len(PAIRS)))
def test_each_lost_run_is_found(at):
    task, run = PAIRS[at]
    found = check(without(WHOLE, at))
    assert found.lost == [f"batch b at trainer t: task {task} run {run} is missing"]
    assert found.duplicates == []


def test_a_run_that_came_twice_is_found():
    doubled = replace(WHOLE, pairs=(*PAIRS, (1, 0)), origins=(*WHOLE.origins, "b/1"), experiences=4)
    found = check(doubled)
    assert found.duplicates == ["batch b at trainer t: task 1 run 0 came 2 times"]
    assert found.lost == []


def test_a_batch_that_never_came_is_found_for_every_trainer():
    found = check(WHOLE, trainers=("t", "u"))
    assert found.lost == ["batch b never reached trainer u"]
    assert check(trainers=("t", "u")).lost[0] == "batch b never reached trainer t"


@pytest.mark.parametrize("state", ["aborted", ""])
def test_a_batch_that_was_not_finalized_is_lost(state):
    assert len(check(batches=(replace(BATCH, state=state),)).lost) == 1


def test_an_accepted_result_that_was_not_delivered_is_lost():
    found = check(WHOLE, results=(*RESULTS, Accepted("b", 1, 1, 9, 1)))
    assert len(found.lost) == 1
    assert "1/1 at sequence 9" in found.lost[0]


def test_a_failed_result_has_nothing_to_deliver():
    assert check(WHOLE, results=(*RESULTS, Accepted("b", 1, 1, 9, 0))).lost == []


def test_a_batch_that_comes_again_is_a_duplicate_only_after_its_acknowledgement():
    again = replace(WHOLE, is_acked=True)
    assert check(replace(WHOLE, is_acked=False), again).duplicates == []
    assert len(check(WHOLE, again).duplicates) == 1


def test_other_content_the_second_time_is_found():
    first = replace(WHOLE, is_acked=False)
    assert len(check(first, replace(WHOLE, digest="e")).inconsistent) == 1


def test_other_content_for_another_trainer_is_found():
    other = replace(WHOLE, trainer="u", digest="e")
    assert len(check(WHOLE, other, trainers=("t", "u")).inconsistent) == 1


def test_a_batch_nobody_submitted_is_found():
    assert len(check(WHOLE, replace(WHOLE, batch="x")).duplicates) == 1


def test_a_run_that_cannot_have_succeeded_is_found():
    batch = replace(BATCH, expected=frozenset(PAIRS[:2]))
    assert len(check(WHOLE, batches=(batch,)).inconsistent) == 1


def test_an_experience_of_another_task_is_found():
    mixed = replace(WHOLE, origins=("b/0", "b/1", "b/1"))
    assert len(check(mixed).inconsistent) == 1


@pytest.mark.parametrize("field", ["experiences", "completed_runs", "runs"])
def test_a_manifest_that_miscounts_is_found(field):
    assert len(check(replace(WHOLE, **{field: 2})).inconsistent) == 1


def test_an_eval_batch_reaches_no_trainer():
    batch = replace(BATCH, is_train=False)
    assert check(batches=(batch,)).lost == []
