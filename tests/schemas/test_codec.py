"""The packed form of experiences, and names on the wire."""

from __future__ import annotations

import pickle

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from explorer_mq_schemas.codec import count, pack, unpack, unpack_arrays
from explorer_mq_schemas.errors import ConfigError, ContractError, InvalidRequest
from explorer_mq_schemas.experiences import (
    ARRAY_DTYPES,
    EID,
    CustomField,
    Experience,
    group_by,
    split_dpo_experience_to_single_turn,
)
from explorer_mq_schemas.ids import decode_token, encode_token, sort_batch_id
from explorer_mq_schemas.subjects import Lane, RunNames, SliceKey
from explorer_mq_schemas.tasks import Slice, Task

texts = st.text(max_size=8)
ids = st.integers(-(2**63), 2**63 - 1)


@st.composite
def experiences(draw):
    size = draw(st.integers(2, 12))
    prompt = draw(st.integers(1, size - 1))
    response = size - prompt
    floats = st.lists(st.floats(-9, 9, width=32), min_size=response, max_size=response)
    optional = {
        name: draw(st.none() | floats)
        for name in ("logprobs", "advantages", "returns", "teacher_logprobs")
    }
    masks = st.lists(st.booleans(), min_size=response, max_size=response)
    return Experience(
        tokens=draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size)),
        prompt_length=prompt,
        eid=EID(draw(texts | ids), draw(ids), draw(st.integers(0, 99))),
        reward=draw(st.none() | st.floats(-1, 1, width=32)),
        action_mask=draw(st.none() | masks),
        info=draw(st.dictionaries(texts, st.integers(-(2**53), 2**53) | texts, max_size=3)),
        metrics=draw(st.dictionaries(texts, st.floats(-5, 5), max_size=3)),
        response_text=draw(st.none() | texts),
        policy_version_start=draw(st.none() | st.integers(0, 2**60)),
        versions=((1, 0, response),),
        **optional,
    )


def same(a, b):
    for name in ("tokens", *ARRAY_DTYPES):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    for name in ("eid", "reward", "info", "metrics", "response_text", "versions", "prompt_length"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.experience_type == b.experience_type
    assert a.policy_version_start == b.policy_version_start


@given(st.lists(experiences(), max_size=4))
def test_round_trip_loses_nothing(samples):
    for before, after in zip(samples, unpack(pack(samples)), strict=True):
        same(before, after)


@given(st.lists(experiences(), min_size=1, max_size=3))
def test_the_safetensors_library_reads_and_writes_the_same(samples):
    buffer = pack(samples)
    arrays = unpack_arrays(buffer)
    theirs = load(buffer)
    assert arrays.keys() == theirs.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, theirs[name])
        assert array.flags.aligned
    size = int.from_bytes(buffer[:8], "little")
    metadata = orjson.loads(buffer[8 : 8 + size])["__metadata__"]
    again = unpack(save(theirs, metadata))
    for before, after in zip(samples, again, strict=True):
        same(before, after)


def one(**fields):
    return Experience(tokens=[1, 2, 3], prompt_length=1, logprobs=[0.0, 0.0], **fields)


def test_arrays_are_views_of_the_buffer():
    buffer = pack([one()])
    raw = np.frombuffer(buffer, np.uint8)
    assert np.shares_memory(unpack(buffer)[0].tokens, raw)
    assert np.shares_memory(unpack(buffer)[0].action_mask, raw)


def test_every_truncation_is_refused():
    buffer = pack([one(), one(reward=1.0)])
    for size in range(len(buffer)):
        with pytest.raises(ContractError):
            unpack(buffer[:size])


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(ContractError):
        unpack(noise)


@given(st.data())
def test_a_flipped_byte_is_refused_or_harmless(data):
    buffer = bytearray(pack([one(), one()]))
    place = data.draw(st.integers(0, len(buffer) - 1))
    buffer[place] ^= data.draw(st.integers(1, 255))
    try:
        unpack(bytes(buffer))
    except ContractError:
        return


def test_pickle_is_refused():
    with pytest.raises(ContractError):
        unpack(pickle.dumps([one().to_dict()]))


def test_oversized_buffer_is_refused():
    with pytest.raises(ContractError, match="exceed the limit"):
        unpack(pack([one()]), max_bytes=10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cu_seqlens", np.array([0, 5, 3], np.int64)),
        ("cu_seqlens", np.array([0, 3], np.int32)),
        ("tokens", np.zeros(3, np.int64)),
        ("prompt_length", np.zeros(2, np.int32)),
        ("versions", np.zeros((0, 2), np.int64)),
        ("logprobs.cu_seqlens", np.array([0, 9], np.int64)),
    ],
)
def test_inconsistent_arrays_are_refused(name, value):
    buffer = pack([one()])
    size = int.from_bytes(buffer[:8], "little")
    metadata = orjson.loads(buffer[8 : 8 + size])["__metadata__"]
    with pytest.raises(ContractError):
        unpack(save({**load(buffer), name: value}, metadata))


def test_experience_type_survives():
    dpo = Experience(tokens=[1, 2], chosen=[1], rejected=[2])
    kinds = [e.experience_type for e in unpack(pack([one(), dpo, one(action_mask=[1, 0])]))]
    assert kinds == ["single_turn", "dpo", "multi_turn"]


@given(st.lists(experiences(), max_size=4))
def test_count_is_the_number_packed(samples):
    assert count(pack(samples)) == len(samples)


def test_multi_modal_tensors_keep_shape_and_sample():
    scale = np.float32(0.5)
    pixels = np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    buffer = pack([one(), one(multi_modal_inputs={"a/b": pixels, "scale": scale})])
    plain, modal = unpack(buffer)
    assert plain.multi_modal_inputs is None
    np.testing.assert_array_equal(modal.multi_modal_inputs["a/b"], pixels)
    assert modal.multi_modal_inputs["scale"].shape == ()


def test_custom_fields_survive():
    fields = [
        CustomField("steps", "n_steps", "int32"),
        {"source_field": "a", "destination_field": "b"},
    ]
    wanted = [fields[0], CustomField("a", "b")]
    assert unpack(pack([one(custom_fields=fields)]))[0].custom_fields == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"reward": "high"},
        {"eid": EID("b", 1, 2**40)},
        {"versions": [(2**70, 0, 2)]},
        {"multi_modal_inputs": {"a": [[1], [1, 2]]}},
        {"multi_modal_inputs": {"a": np.array(["text"])}},
        {"info": {"x": object()}},
        {"reward": float("nan")},
        {"reward": 1e300},
        {"metrics": {"kl": float("nan")}},
    ],
)
def test_what_cannot_be_stored_is_refused(fields):
    with pytest.raises(ContractError):
        pack([one(**fields)])


@pytest.mark.parametrize(
    "fields",
    [{"returns": [10**400]}, {"versions": [(1, 2)]}, {"custom_fields": [{"source": "a"}]}],
)
def test_experience_refuses_malformed_fields(fields):
    with pytest.raises(ContractError):
        one(**fields)


def test_token_beyond_int32_is_refused():
    with pytest.raises(ContractError, match="tokens"):
        Experience(tokens=[2**40, 1], prompt_length=1)


@pytest.mark.parametrize("name", ["tokens", "chosen"])
def test_array_number_that_does_not_fit_is_refused(name):
    for wrong in (np.array([2**40, 1, 1]), np.array([0.5, 1, 1]), np.array([np.nan, 1, 1])):
        with pytest.raises(ContractError, match=name):
            Experience(**{"tokens": [1, 2, 3], "action_mask": [1], name: wrong})


def test_arrays_set_later_are_converted_when_packed():
    sample = one()
    sample.advantages = [0.5, 1.5]
    assert unpack(pack([sample]))[0].advantages.tolist() == [0.5, 1.5]
    sample.returns = "x"
    with pytest.raises(ContractError, match="returns"):
        pack([sample])
    sample.returns, sample.versions = None, [(1, 2)]
    with pytest.raises(ContractError, match="versions"):
        pack([sample])


def test_tensors_are_taken_with_gradients_and_in_half_precision():
    torch = pytest.importorskip("torch")
    sample = Experience(
        tokens=torch.tensor([1, 2, 3]),
        logprobs=torch.tensor([0.5, -1.0], dtype=torch.bfloat16),
        advantages=torch.ones(2, requires_grad=True),
    )
    (after,) = unpack(pack([sample]))
    assert after.tokens.tolist() == [1, 2, 3]
    assert after.logprobs.tolist() == [0.5, -1.0]
    assert after.advantages.tolist() == [1.0, 1.0]


def test_fields_that_some_samples_lack_stay_absent():
    samples = [one(returns=[1, 2]), one(), one(returns=[])]
    found = [e.returns for e in unpack(pack(samples))]
    assert found[0].tolist() == [1, 2]
    assert found[1] is None
    assert found[2].tolist() == []


def test_routed_experts_keep_their_shape_and_must_agree_on_it():
    sample = one(routed_experts=np.arange(12, dtype=np.uint8).reshape(2, 3, 2))
    (_, after) = unpack(pack([one(), sample]))
    np.testing.assert_array_equal(after.routed_experts, sample.routed_experts)
    with pytest.raises(ContractError, match="routed_experts"):
        pack([sample, one(routed_experts=np.zeros((2, 3, 1), np.uint8))])


@pytest.mark.parametrize("read", [unpack, unpack_arrays, count])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", np.zeros((3, 2), np.int32)),
        ("action_mask", np.array([1, 2], np.uint8)),
        ("action_mask.present", np.zeros(2, np.uint8)),
        ("cu_seqlens", np.zeros(0, np.int64)),
    ],
)
def test_every_reader_refuses_inconsistent_arrays(read, name, value):
    buffer = pack([one()])
    size = int.from_bytes(buffer[:8], "little")
    metadata = orjson.loads(buffer[8 : 8 + size])["__metadata__"]
    with pytest.raises(ContractError):
        read(save({**load(buffer), name: value}, metadata))


def test_a_gap_between_tensors_is_refused():
    def gap(header):
        header.pop("run")

    with pytest.raises(ContractError, match="gaps"):
        unpack(edited(gap))


def test_a_boolean_beyond_one_is_refused():
    flags = np.array([True, False])
    buffer = bytearray(pack([one(multi_modal_inputs={"flags": flags})]))
    assert unpack(bytes(buffer))[0].multi_modal_inputs["flags"].tolist() == [True, False]
    body = 8 + int.from_bytes(buffer[:8], "little")
    header = orjson.loads(buffer[8:body])
    place = body + header["mm/0/flags"]["data_offsets"][0]
    buffer[place] = 2
    with pytest.raises(ContractError, match="boolean"):
        unpack(bytes(buffer))


def edited(edit):
    buffer = pack([one()])
    size = int.from_bytes(buffer[:8], "little")
    header = orjson.loads(buffer[8 : 8 + size])
    edit(header)
    text = orjson.dumps(header)
    return len(text).to_bytes(8, "little") + text + buffer[8 + size :]


@pytest.mark.parametrize("shape", [[0] * 100, [0, 2**62, 2**62], [-1, 0], [0.0], None])
def test_impossible_shapes_are_refused(shape):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    with pytest.raises(ContractError):
        unpack(edited(lambda header: header.update({"mm/0/z": entry})))


def test_overlapping_tensors_are_refused():
    def overlap(header):
        header["run"]["data_offsets"] = header["step"]["data_offsets"]

    with pytest.raises(ContractError, match="overlap"):
        unpack(edited(overlap))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "other"},
        {"type": [1]},
        {"batch": {}},
        {"task": None},
        {"info": [1]},
        {"metrics": 1},
    ],
)
def test_malformed_items_are_refused(change):
    def edit(header):
        item = {**orjson.loads(header["__metadata__"]["items"])[0], **change}
        header["__metadata__"]["items"] = orjson.dumps([item]).decode()

    with pytest.raises(ContractError):
        unpack(edited(edit))


def test_a_preference_pair_splits_into_two_single_turns():
    eid = EID("b", 1, 2, 3)
    pair = Experience(tokens=[1, 2], chosen=[3], rejected=[4, 5], eid=eid, reward=1.0)
    chosen, rejected = split_dpo_experience_to_single_turn([pair])
    assert chosen.tokens.tolist() == [1, 2, 3]
    assert rejected.tokens.tolist() == [1, 2, 4, 5]
    for single in (chosen, rejected):
        assert single.experience_type == "single_turn"
        assert single.prompt_length == 2
        assert single.eid.rid == eid.rid
    assert len({chosen.eid.uid, rejected.eid.uid, eid.uid}) == 3
    with pytest.raises(InvalidRequest, match="chosen and rejected"):
        split_dpo_experience_to_single_turn([one()])


def test_group_by_names_the_choices():
    samples = [one(eid=EID("b", 1, 0)), one(eid=EID("b", 1, 1)), one(eid=EID("b", 2, 0))]
    assert [len(group) for group in group_by(samples, "task").values()] == [2, 1]
    with pytest.raises(ValueError, match="task, run or step"):
        group_by(samples, "other")


@given(st.text(min_size=1, max_size=40).filter(lambda t: t.isprintable()))
def test_tokens_carry_any_id(text):
    token = encode_token(text)
    assert decode_token(token) == text
    assert not set(token) & set(".*> \t\n")


@pytest.mark.parametrize("bad", ["", "a" * 300, "\ud800"])
def test_unusable_ids_are_refused(bad):
    with pytest.raises(InvalidRequest):
        encode_token(bad)


@given(
    st.text(min_size=1, max_size=20).filter(str.isprintable), st.integers(0, 9), st.integers(0, 9)
)
def test_subjects_name_their_slice(batch, task, number):
    names = RunNames("run")
    key = SliceKey(batch, task, number)
    for subject in (names.result(key), names.attempt(key), names.dead(key)):
        assert names.parse_slice(subject) == key
    subject = names.task("gpu.big", Lane.URGENT, key)
    assert names.parse_slice(subject) == key
    assert names.parse_lane(subject) == ("gpu.big", Lane.URGENT)


def test_foreign_subjects_and_runs_are_refused():
    for subject in ("exmq.other.result.b.0.0", "exmq.run.result.b.0", "exmq.run.result.b.x.0", "a"):
        with pytest.raises(ContractError):
            RunNames("run").parse_slice(subject)
    with pytest.raises(ConfigError):
        RunNames("a.b")


def test_batches_sort_as_steps():
    ids = ["zzz", 10, "2/eval", 3, 2, -1, "0/x", "10/a", "2", "abc"]
    wanted = [-1, "0/x", 2, "2/eval", "2", 3, 10, "10/a", "zzz", "abc"]
    assert sorted(ids, key=sort_batch_id) == wanted


def test_messages_tolerate_new_fields_and_refuse_new_majors():
    work = Slice(batch="b", task_number=1, number=0, run_ids=(0,), task=Task())
    assert Slice.decode(work.encode()) == work
    extended = work.encode()[:-1] + b',"later":1}'
    assert Slice.decode(extended) == work
    with pytest.raises(ContractError, match="schema version 2"):
        Slice.decode(work.encode().replace(b'"schema_version":1', b'"schema_version":2', 1))
    with pytest.raises(ContractError, match="run_ids"):
        Slice.decode(work.encode().replace(b"[0]", b"[0,0]"))
