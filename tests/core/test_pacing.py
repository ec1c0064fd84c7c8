"""Traces of the sync styles, as the reference's description has them; an explorer that dies goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_mq.core.pacing import Action, Do, Pacing, Progress, next_action

STYLES = ("fixed", "explorer_driven", "trainer_driven", "fully_async")


def perform(done, action, total):
    """What is so after ``action``."""
    match action.do:
        case Do.SUBMIT:
            if action.step > total:
                return replace(done, exhausted=True)
            return replace(done, submitted=action.step)
        case Do.EVALUATE:
            opened = (*done.evals_open, action.step)
            return replace(done, evaluated=action.step, evals_open=opened)
        case Do.FINALIZE:
            return replace(done, finalized=action.step)
        case Do.FINALIZE_EVALS:
            left = tuple(step for step in done.evals_open if step != action.step)
            return replace(done, evals_open=left)
        case Do.SYNC:
            return replace(done, synced=action.step)
    return done


def trace(pacing, total):
    done, found = Progress(), []
    for _ in range(20 * (total + 2)):
        action = next_action(pacing, done)
        if action.do is Do.END:
            return found
        done = perform(done, action, total)
        if not done.exhausted or action.do is not Do.SUBMIT:
            found.append(action)
    raise AssertionError(f"does not end: {found[-10:]}")


def text(actions):
    short = {
        Do.SUBMIT: "s",
        Do.EVALUATE: "e",
        Do.FINALIZE: "f",
        Do.FINALIZE_EVALS: "fe",
        Do.SYNC: "y",
    }
    return " ".join(f"{short[one.do]}{one.step}" for one in actions)


@pytest.mark.parametrize(
    ("rules", "total", "wanted"),
    [
        ({}, 2, "s1 f1 y1 s2 f2 y2"),
        ({"sync_interval": 2}, 4, "s1 s2 f1 f2 y2 s3 s4 f3 f4 y4"),
        ({"sync_offset": 1}, 3, "s1 s2 f1 f2 y2 s3 f3 y3"),
        ({"sync_interval": 2, "sync_offset": 1}, 4, "s1 s2 s3 f1 f2 f3 y3 s4 f4"),
        (
            {"sync_interval": 2, "eval_interval": 2, "eval_on_startup": False},
            3,
            "s1 s2 e2 f1 f2 fe2 y2 s3 f3",
        ),
        ({"eval_interval": 1}, 1, "e0 s1 e1 fe0 f1 fe1 y1"),
        (
            {"sync_offset": 3, "eval_interval": 1, "eval_on_startup": False},
            4,
            "s1 e1 s2 e2 s3 e3 s4 e4 f1 fe1 f2 fe2 f3 fe3 f4 fe4 y4",
        ),
        ({"style": "fully_async", "max_inflight_batches": 1}, 3, "s1 f1 s2 f2 s3 f3"),
        ({"style": "fully_async", "max_inflight_batches": 2}, 4, "s1 s2 f1 s3 f2 s4 f3 f4"),
    ],
)
def test_trace_of(rules, total, wanted):
    assert text(trace(Pacing(**rules), total)) == wanted


pacings = st.builds(
    Pacing,
    style=st.sampled_from(STYLES),
    sync_interval=st.integers(1, 4),
    sync_offset=st.integers(0, 3),
    max_inflight_batches=st.integers(1, 3),
    eval_interval=st.none() | st.integers(1, 3),
    eval_on_startup=st.booleans(),
)


@given(pacings, st.integers(0, 12))
def test_every_step_and_eval_happens_once_and_in_order(pacing, total):
    actions = trace(pacing, total)
    for do in (Do.SUBMIT, Do.FINALIZE):
        assert [one.step for one in actions if one.do is do] == list(range(1, total + 1))
    evals = [step for step in range(total + 1) if pacing.is_evaluated(step)]
    for do in (Do.EVALUATE, Do.FINALIZE_EVALS):
        assert [one.step for one in actions if one.do is do] == evals


@given(pacings, st.integers(1, 12))
def test_never_more_in_flight_than_the_style_allows(pacing, total):
    in_flight, longest = 0, pacing.sync_interval + pacing.sync_offset
    for action in trace(pacing, total):
        in_flight += (action.do is Do.SUBMIT) - (action.do is Do.FINALIZE)
        if pacing.style == "fully_async":
            assert in_flight <= pacing.max_inflight_batches
        else:
            assert in_flight <= longest


def test_action_is_a_value():
    assert Action(Do.SYNC, 3) == Action(Do.SYNC, 3)


BASE_EVAL_OPEN = Progress(evaluated=0, evals_open=(0,))


@pytest.mark.parametrize(
    ("rules", "done", "wanted"),
    [
        ({}, BASE_EVAL_OPEN, Action(Do.SUBMIT, 1)),
        ({}, replace(BASE_EVAL_OPEN, exhausted=True), Action(Do.FINALIZE_EVALS, 0)),
        ({"style": "fully_async"}, BASE_EVAL_OPEN, Action(Do.FINALIZE_EVALS, 0)),
        (
            {"eval_interval": None},
            Progress(submitted=2, finalized=2, synced=2, exhausted=True),
            Action(Do.END, 2),
        ),
    ],
)
def test_next_action_is(rules, done, wanted):
    assert next_action(Pacing(**{"eval_interval": 1, **rules}), done) == wanted
