"""Edges of the core: large numbers, early closes, two deadlines, replays of a close."""

from __future__ import annotations

import pytest

from explorer_mq.core.batch import (
    abort_entry,
    collect_entry,
    decide,
    evolve,
    expired,
    open_batch,
    replay,
)
from explorer_mq.core.snapshot import RunSnapshot, digest, dump, load
from explorer_mq.core.state import Abort, FinalizeRequested, ResultArrived
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.journal import Running
from tests.core.test_batch import arrive, opening, report, running


def test_result_with_many_attempts_is_folded():
    state = arrive(running(max_attempts=5000), 0, 0, 1, [], attempt=1100)
    assert len(state.retries) == 1


@pytest.mark.parametrize(
    "entry", [abort_entry(open_batch(opening()), "why"), collect_entry(open_batch(opening()), [])]
)
def test_pending_batch_is_closed_by_the_entry_that_was_journalled(entry):
    assert evolve(open_batch(opening()), entry).phase is Phase.FINALIZING


def test_asked_for_batch_expires_at_its_deadline_although_its_tasks_cannot_be_queued():
    assert expired(evolve(open_batch(opening()), FinalizeRequested()), 1100.0)


def test_batch_that_closes_itself_outlives_a_caller_who_waits_for_less():
    state = evolve(running(auto_finalize=True), FinalizeRequested(1005.0))
    assert not any(isinstance(effect, Abort) for effect in decide(state, 1006.0))


def closed_with_a_part(min_wait_num=None):
    """A batch with two settled tasks that is closed with the second, and what it was made of."""
    groups = (opening().groups[0].model_copy(update={"repeat_times": 2}),)
    entries = [opening(groups=groups, min_wait_num=min_wait_num), Running(batch=1)]
    events = [ResultArrived(task, report(0, task + 1, [0, 1], at=1001.0 + task)) for task in (0, 1)]
    state = replay(entries, [("1", event) for event in events])["1"]
    entries.append(collect_entry(state, [1]))
    return evolve(state, entries[-1]), entries, events


def test_settled_tasks_of_a_closed_batch_are_those_it_was_closed_with():
    state, entries, events = closed_with_a_part()
    assert load(dump(RunSnapshot({"1": state})), window=9).batches["1"].settled == state.settled
    assert replay(entries, [("1", event) for event in events])["1"].settled == state.settled


def test_digest_of_a_closed_batch_is_the_same_after_a_replay():
    state, entries, events = closed_with_a_part(min_wait_num=1)
    again = replay(entries, [("1", event) for event in events])
    assert digest(RunSnapshot(again)) == digest(RunSnapshot({"1": state}))
