from __future__ import annotations

import numpy as np
import pytest

from explorer_mq.trainer.arrays import concatenate, pad
from explorer_mq.trainer.batch import BatchContent, Payload
from explorer_mq_schemas.batches import Parts, TrainBatchManifest
from explorer_mq_schemas.codec import pack, unpack_arrays
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.experiences import EID, Experience

SAMPLES = [
    Experience(tokens=[1, 2, 3], prompt_length=2, logprobs=[-1.0], reward=1.0, eid=EID(1, "a")),
    Experience(tokens=[4, 5], prompt_length=1, eid=EID(1, "a", 1)),
    Experience(tokens=[6, 7, 8, 9], prompt_length=1, logprobs=[-2.0, -3.0, -4.0], eid=EID(1, "b")),
    Experience(tokens=[6, 7], multi_modal_inputs={"x": np.ones(2, np.float32)}, eid=EID(1, "c")),
]


def content(*groups: list[Experience], tasks: tuple[int | None, ...] | None = None) -> BatchContent:
    sizes = tuple(len(group) for group in groups)
    manifest = TrainBatchManifest(
        run="r",
        batch=1,
        tasks=len(groups),
        finished_task_count=len(groups),
        runs=sum(sizes),
        completed_runs=sum(sizes),
        experiences=sum(sizes),
        parts=Parts(stream="s", seq=tuple(range(len(groups))), experiences=sizes),
    )
    numbers = tasks or (None,) * len(groups)
    parts = [Payload(pack(group), task) for group, task in zip(groups, numbers, strict=True)]
    return BatchContent(manifest, parts)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
def test_arrays_equal_those_of_one_buffer_wherever_it_is_cut(cut):
    whole = unpack_arrays(pack(SAMPLES))
    joined = concatenate([unpack_arrays(pack(part)) for part in (SAMPLES[:cut], SAMPLES[cut:])])
    assert joined.keys() == whole.keys()
    for name, array in whole.items():
        assert joined[name].dtype == array.dtype, name
        np.testing.assert_array_equal(joined[name], array, err_msg=name)


def test_arrays_of_an_empty_batch_are_empty():
    arrays = content().arrays()
    assert arrays["cu_seqlens"].tolist() == [0]
    assert len(arrays["tokens"]) == len(arrays["reward"]) == len(arrays["task"]) == 0
    assert content().padded()["tokens"].shape == (0, 0)
    assert content().experiences() == []


def test_task_column_is_the_slice_number_where_it_is_known():
    batch = content(SAMPLES[:1], SAMPLES[1:2], SAMPLES[2:], tasks=(4, 4, 9))
    assert batch.arrays()["task"].tolist() == [4, 4, 9, 9]


def test_task_column_follows_the_ids_where_it_is_not():
    assert content(SAMPLES).arrays()["task"].tolist() == [0, 0, 1, 2]


def test_experiences_are_unpacked_once_and_in_order():
    batch = content(SAMPLES[:2], SAMPLES[2:])
    assert [e.tokens.tolist() for e in batch.experiences()] == [e.tokens.tolist() for e in SAMPLES]
    assert batch.experiences() is batch.experiences()
    assert len(batch) == 4


def test_padding_aligns_response_values_with_their_tokens():
    padded = pad(content(SAMPLES).arrays(), pad_token_id=-1)
    assert padded["tokens"].tolist() == [
        [1, 2, 3, -1],
        [4, 5, -1, -1],
        [6, 7, 8, 9],
        [6, 7, -1, -1],
    ]
    assert padded["logprobs"].tolist() == [[0, 0, -1, 0], [0] * 4, [0, -2, -3, -4], [0] * 4]
    assert padded["action_mask"].astype(int).tolist() == [
        [0, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 1],
        [0, 1, 0, 0],
    ]
    assert padded["attention_mask"].sum(1).tolist() == [3, 2, 4, 2]


def test_batch_refuses_a_part_that_contradicts_its_manifest():
    batch = content(SAMPLES[:2])
    batch.parts = (Payload(pack(SAMPLES[:1])),)
    with pytest.raises(ContractError, match="batch 1 of run r: part 0 holds 1"):
        batch.arrays()
    with pytest.raises(ContractError, match="part 0 holds 1"):
        batch.experiences()
