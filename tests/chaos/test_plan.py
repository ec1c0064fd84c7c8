"""The plan is drawn from the seed alone and holds every fault in its share."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from explorer_mq.chaos.plan import SHARES, FaultKind, plan
from explorer_mq.chaos.workload import planned_batch

DECK = sum(SHARES.values())
STEPS = ("submit.journalled", "deliver.published")


def faults(seed, count, **options):
    options = {"interval_s": 1.0, "lease_s": 2.0, "steps": STEPS, **options}
    return list(itertools.islice(plan(seed, **options), count))


def test_same_seed_gives_the_same_faults_and_another_seed_others():
    assert faults(1, 50) == faults(1, 50)
    assert faults(1, 50) != faults(2, 50)


def test_every_deck_holds_every_kind_in_its_share():
    dealt = faults(7, 2 * DECK)
    for start in (0, DECK):
        assert Counter(fault.kind for fault in dealt[start : start + DECK]) == SHARES


def test_steps_are_used_in_turn_and_only_by_their_kind():
    dealt = faults(3, 4 * DECK)
    assert {fault.kind for fault in dealt if fault.step} == {FaultKind.KILL_AT_STEP}
    names = Counter(fault.step.partition(":")[0] for fault in dealt if fault.step)
    assert set(names) == set(STEPS)
    assert max(names.values()) - min(names.values()) <= 1


def test_without_steps_the_coordinator_is_killed_from_outside():
    kinds = Counter(fault.kind for fault in faults(3, DECK, steps=()))
    assert FaultKind.KILL_AT_STEP not in kinds
    both = SHARES[FaultKind.KILL_AT_STEP] + SHARES[FaultKind.KILL_COORDINATOR]
    assert kinds[FaultKind.KILL_COORDINATOR] == both


def test_stops_are_sometimes_longer_than_the_lease():
    seconds = [fault.seconds for fault in faults(5, 10 * DECK, lease_s=2.0)]
    assert min(seconds) < 2.0 < max(seconds) <= 4.0


def test_gaps_follow_the_interval():
    gaps = [fault.after_s for fault in faults(5, 20 * DECK, interval_s=2.0)]
    assert all(0.2 <= gap <= 6.0 for gap in gaps)
    assert 1.6 < sum(gaps) / len(gaps) < 2.4


def test_batches_are_drawn_from_seed_and_number_and_are_large_enough():
    marks = Path("marks")
    assert planned_batch(1, 4, marks) == planned_batch(1, 4, marks)
    assert planned_batch(1, 4, marks) != planned_batch(1, 5, marks)
    batches = [planned_batch(1, number, marks) for number in range(200)]
    slices = [sum(-(-task.repeat_times // 2) for task in batch.tasks) for batch in batches]
    assert sum(slices) / len(slices) >= 70
    assert {batch.batch_type for batch in batches} == {"train", "eval"}


def test_broken_tasks_are_the_only_ones_not_expected():
    for number in range(50):
        batch = planned_batch(2, number, Path("marks"))
        for at, task in enumerate(batch.tasks):
            runs = {run for index, run in batch.expected if index == at}
            is_broken = task.workflow.endswith(":broken")
            assert runs == (set() if is_broken else set(range(task.repeat_times)))
