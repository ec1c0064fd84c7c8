"""Names on the wire: tokens, subjects, streams and their filters."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from explorer_mq_schemas.errors import ConfigError, ContractError, InvalidRequest
from explorer_mq_schemas.ids import MAX_TOKEN_CHARS, decode_token, encode_token
from explorer_mq_schemas.subjects import Lane, RunNames, SliceKey

names = RunNames("run")
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
keys = st.builds(SliceKey, ids, st.integers(0, 2**40), st.integers(0, 2**40))
lanes = st.sampled_from(Lane)


def matches(pattern, subject):
    """Whether ``pattern`` selects ``subject`` by the rules of NATS wildcards."""
    wanted, given_tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(given_tokens) <= len(wanted):
            return False
        given_tokens = given_tokens[: len(wanted)]
    return len(wanted) == len(given_tokens) and all(
        w in ("*", g) for w, g in zip(wanted, given_tokens, strict=True)
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_token_carries_any_text_when_it_fits(text):
    try:
        token = encode_token(text)
    except InvalidRequest:
        assert len(text.encode()) * 3 > MAX_TOKEN_CHARS
        return
    assert decode_token(token) == text
    assert token.isascii()
    assert not set(token) & set(".*> \t\r\n")


@given(ids, ids)
def test_tokens_differ_when_texts_do(left, right):
    assume(left != right)
    assert encode_token(left) != encode_token(right)


@pytest.mark.parametrize(
    "token", ["", "a.b", "a b", "*", ">", "%", "%4", "%2e", "%41", "%FF", "a\n"]
)
def test_token_is_refused_when_not_canonical(token):
    with pytest.raises(ContractError):
        decode_token(token)


@given(keys, ids, lanes)
def test_task_subject_gives_back_pool_lane_and_slice(key, pool, lane):
    subject = names.task(pool, lane, key)
    assert names.parse_slice(subject) == key
    assert names.parse_lane(subject) == (pool, lane)


@given(keys)
def test_slice_subjects_are_distinct_and_parse(key):
    subjects = [names.result(key), names.attempt(key), names.dead(key)]
    assert len(set(subjects)) == 3
    assert [names.parse_slice(subject) for subject in subjects] == [key] * 3


@given(keys, ids, lanes)
def test_filters_select_their_subjects(key, pool, lane):
    task = names.task(pool, lane, key)
    for pattern in (
        names.all_tasks,
        names.pool_filter(pool, lane),
        names.batch_tasks(key.batch),
    ):
        assert matches(pattern, task)
    assert matches(names.all_results, names.result(key))
    assert matches(names.batch_results(key.batch), names.result(key))
    assert matches(names.all_attempts, names.attempt(key))
    assert matches(names.all_dead, names.dead(key))


@given(keys, ids, ids, lanes)
def test_filters_leave_out_other_batches_and_pools(key, other, pool, lane):
    assume(other not in (key.batch, pool))
    task = names.task(pool, lane, key)
    assert not matches(names.batch_tasks(other), task)
    assert not matches(names.pool_filter(other, lane), task)
    assert not matches(names.batch_results(other), names.result(key))
    (unlike,) = set(Lane) - {lane}
    assert not matches(names.pool_filter(pool, unlike), task)


@given(ids, st.integers(0, 999))
def test_training_filters_tell_manifests_from_parts(batch, part):
    subject = names.train(batch, part)
    assert matches(names.all_training, subject)
    assert matches(names.batch_training(batch), subject)
    assert matches(names.manifests(), subject) == (part == 0)


@given(ids, ids)
def test_state_weights_objects_and_beats_match_their_filters(first, second):
    assert matches(f"$KV.{names.state_bucket}.>", names.state(first, second))
    assert matches(names.all_weights, names.weights(3) + ".0")
    assert matches(names.all_objects, names.object(first, second) + ".0")
    assert matches(names.all_beats, names.beat(first))


@given(ids)
def test_consumer_names_are_single_tokens(text):
    for name in (names.pool_consumer(text, Lane.URGENT), names.trainer_consumer(text)):
        assert not set(name) & set(".*> /\\\t\r\n")


def test_streams_do_not_share_subjects():
    key = SliceKey("b", 0, 0)
    subjects = [
        names.task("default", Lane.NORMAL, key),
        names.result(key),
        names.attempt(key),
        names.dead(key),
        names.train("b", 0),
        names.weights(1) + ".0",
        names.object("b") + ".0",
        names.journal,
        names.cancel,
        names.beat("w"),
        names.actor("coordinator", "submit"),
    ]
    filters = [
        names.all_tasks,
        names.all_results,
        names.all_attempts,
        names.all_dead,
        names.all_training,
        names.all_weights,
        names.all_objects,
        names.journal,
        names.all_beats,
    ]
    for subject in subjects:
        assert sum(matches(pattern, subject) for pattern in filters) <= 1


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "exmq",
        "exmq.other.result.b.0.0",
        "exmq.run.result.b.0",
        "exmq.run.result.b.0.0.0",
        "exmq.run.task.default.normal.b.0",
        "exmq.run.result.b.x.0",
        "exmq.run.result.b.-1.0",
        "exmq.run.result.b.١.0",
        "exmq.run.result.%zz.0.0",
        "exmq.run.train.b.0.0",
    ],
)
def test_foreign_subject_is_refused(subject):
    with pytest.raises(ContractError):
        names.parse_slice(subject)


def test_unknown_lane_is_refused():
    with pytest.raises(ContractError, match="no such lane"):
        names.parse_lane("exmq.run.task.default.fast.b.0.0")


@pytest.mark.parametrize("subject", ["exmq.run.result.b.0.0", "exmq.run.dead.b.0.0"])
def test_lane_is_refused_when_the_subject_is_no_task(subject):
    with pytest.raises(ContractError):
        names.parse_lane(subject)


@pytest.mark.parametrize("run", ["", "a.b", "a b", "a*", "a>", "a\n", "a" * 65, "é"])
def test_run_is_refused_when_it_is_no_token(run):
    with pytest.raises(ConfigError):
        RunNames(run)
