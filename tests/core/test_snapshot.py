"""A snapshot holds all that decides: loading it gives the same state, whatever had happened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.core.batch import decide, evolve, next_wake, open_batch
from explorer_mq.core.snapshot import RunSnapshot, UsedIds, digest, dump, load
from explorer_mq.core.state import FinalizeRequested
from explorer_mq.core.timeouts import TimeoutHistory
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.journal import Aborted, Finalized, Running
from tests.core.test_batch import arrivals, arrive, finish_all, opening, running

WINDOW = 5


def snapshot_of(*states, **fields):
    batches = {f"{number}": state for number, state in enumerate(states, 1)}
    return RunSnapshot(batches, history=TimeoutHistory(window=WINDOW), **fields)


@given(arrivals(), arrivals())
def test_state_goes_on_from_a_snapshot_as_if_nothing_had_happened(before, after):
    state = running(min_wait_num=2)
    for event in before:
        state = evolve(state, event)
    loaded = load(dump(snapshot_of(state)), window=WINDOW).batches["1"]
    assert loaded == state
    for event in after:
        state, loaded = evolve(state, event), evolve(loaded, event)
    assert loaded == state
    asked, loaded = evolve(state, FinalizeRequested()), evolve(loaded, FinalizeRequested())
    for now in (1001.0, 1050.0, 2000.0):
        assert decide(loaded, now) == decide(asked, now)
        assert next_wake(loaded, now) == next_wake(asked, now)


@given(arrivals(), st.booleans())
def test_closed_batches_survive_a_snapshot(events, aborted):
    state = evolve(running(), FinalizeRequested())
    for event in events:
        state = evolve(state, event)
    while not (closing := [e for e in decide(state, 1001.0) if hasattr(e, "entry")]):
        state = finish_all(state, 1000)
    state = evolve(state, closing[0].entry)
    closed = evolve(load(dump(snapshot_of(state)), window=WINDOW).batches["1"], FinalizeRequested())
    assert (closed.tasks, closed.closing, closed.late) == (state.tasks, state.closing, state.late)
    assert decide(closed, 1001.0) == decide(state, 1001.0)
    end = (
        Aborted(batch=1, batch_type="train", reason="why")
        if aborted
        else Finalized(
            batch=1,
            batch_type="train",
            finished_task_count=3,
            completed_runs=state.completed_runs,
            experiences=state.experiences,
            metrics={"rollout/m/mean": 0.5},
        )
    )
    over = evolve(state, end)
    again = load(dump(snapshot_of(over)), window=WINDOW).batches["1"]
    assert evolve(again, FinalizeRequested()) == over


def test_digest_tells_states_apart():
    one, other = snapshot_of(running()), snapshot_of(running(min_wait_num=1))
    assert digest(one) == digest(load(dump(one), window=WINDOW))
    assert digest(one) != digest(other)
    history = TimeoutHistory(window=WINDOW).add("train", {2: (4, 2.5)}, complete=True)
    assert digest(RunSnapshot(history=history)) != digest(RunSnapshot())
    assert load(dump(RunSnapshot(history=history)), window=WINDOW).history == history


@given(st.lists(st.integers(0, 50)), st.lists(st.sampled_from(["a", "007", "1.5", "-1", ""])))
def test_used_ids_are_exactly_those_added(numbers, names):
    used = UsedIds().add(str(number) for number in numbers[::2])
    used = used.add([*(str(number) for number in numbers[1::2]), *names])
    for number in range(52):
        assert (str(number) in used) == (number in numbers)
    for name in ("a", "007", "1.5", "-1", "b"):
        assert (name in used) == (name in names)
    again = load(dump(snapshot_of(used=used)), window=WINDOW).used
    assert again == used


def test_history_goes_on_from_a_snapshot_with_the_newest_batches_only():
    history = TimeoutHistory(window=WINDOW)
    for number in range(4):
        history = history.add("train", {2: (number, 1.5), 1: (1, 0.5)}, complete=number > 0)
        history = history.add("eval", {3: (number, 2.5)}, complete=True)
    data = dump(RunSnapshot(history=history))
    assert load(data, window=WINDOW).history == history
    short = load(data, window=2).history
    assert short == TimeoutHistory(
        window=2, steps=3, train=history.train[-2:], eval=history.eval[-2:]
    )


def test_equal_states_have_equal_documents():
    used = UsedIds().add(["b", "a", "3", "1", "2"])
    assert b'"used":{"numbers":[[1,3]],"names":["a","b"]}' in dump(RunSnapshot(used=used))
    late = evolve(open_batch(opening()), Aborted(batch=1, batch_type="train", reason="x"))
    late = arrive(arrive(late, 0, 0, 70, []), 0, 1, 7, [])
    assert b'"late":[7,70],"late_total":2' in dump(snapshot_of(late))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"format": "other"}', "snapshot of format 'other', expected 'exmq.snapshot.1'"),
        (b"{}", "snapshot: malformed (KeyError: 'format')"),
    ],
)
def test_unreadable_snapshot_says_what_is_wrong(data, text):
    with pytest.raises(ContractError) as caught:
        load(data, window=WINDOW)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", [b'"closing":null', b'"outcome":null'])
def test_batch_with_entries_of_the_wrong_kind_is_an_error(name):
    field, _ = name.split(b":")
    entry = Running(batch=1).encode()
    data = dump(snapshot_of(running())).replace(name, field + b":" + entry)
    with pytest.raises(ContractError, match=r"^snapshot: batch 1 has entries of the wrong kind$"):
        load(data, window=WINDOW)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"format": "other"}', dump(RunSnapshot()).replace(b'"train"', b'"x"')],
)
def test_unreadable_snapshot_is_an_error(data):
    with pytest.raises(ContractError, match="snapshot"):
        load(data, window=WINDOW)


def test_batch_without_its_opening_is_an_error():
    data = dump(snapshot_of(running()))
    broken = data.replace(b'"entry":"submitting"', b'"entry":"running"')
    with pytest.raises(ContractError, match=r"^snapshot: a batch without its opening entry$"):
        load(broken, window=WINDOW)
