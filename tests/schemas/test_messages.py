"""Control messages: what goes out comes back, and what breaks the contract is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import explorer_mq_schemas
from explorer_mq_schemas import errors, journal
from explorer_mq_schemas.batches import BatchResult, BatchView, Parts, TrainBatchManifest
from explorer_mq_schemas.beats import Claim, Claims, RunningSlice, WorkerBeat
from explorer_mq_schemas.cancel import Cancel
from explorer_mq_schemas.errors import ContractError, InvalidRequest
from explorer_mq_schemas.events import Event
from explorer_mq_schemas.generate import MESSAGES
from explorer_mq_schemas.ids import decode_token
from explorer_mq_schemas.messages import ObjectRef
from explorer_mq_schemas.policy import PolicyAnnouncement
from explorer_mq_schemas.results import Attempt, DeadLetter, Failure, Result
from explorer_mq_schemas.subjects import RunNames
from explorer_mq_schemas.tasks import GenerationConfig, Slice, Status, Task
from explorer_mq_schemas.timeouts import AttemptTimeouts

FAILURE = Failure(code="task", kind="ValueError", message="ü\n", traceback="line\n")
REF = ObjectRef(prefix="exmq.r.object.b", chunks=2, bytes=9, sha256="0" * 64)
ATTEMPT = Attempt(worker="w", attempt=2, seconds=1.5, failure=FAILURE, end="timeout", excused=1)
TASK = Task(
    repeat_times=4,
    raw_task={"prompt": "1 + 1", "answer": "2", "nested": [None, {"a": 0.1}]},
    rollout_args=GenerationConfig(n=2, stop=("\n",), extra={"min_p": 0.1}),
    batch_id=7,
    task_id="7",
)
SAMPLES = [
    ATTEMPT,
    REF,
    TASK,
    BatchResult(batch_id="b", batch_type="eval", state="aborted", finished_task_count=0),
    BatchView(
        batch_id=7,
        batch_type="train",
        state="running",
        tasks=2,
        settled_tasks=1,
        runs=8,
        completed_runs=4,
        failed_runs=1,
        experiences=4,
        submitted_at=1.5,
        statuses=(Status(completed_runs=1, total_runs=2, metrics=({"a": 1.0},), message="1/2"),),
    ),
    Cancel(batch="b", tasks=(1, 2)),
    DeadLetter(subject="s", reason="r", worker="w", failure=FAILURE, history=(ATTEMPT,)),
    PolicyAnnouncement(version=3, channel="object", object=REF),
    Result(
        worker="w",
        attempt=1,
        seconds=0.5,
        failure=FAILURE,
        run_ids=(0, 2),
        completed=(2,),
        metrics=({"reward": 0.5},),
        object=REF,
    ),
    Claims(worker="w", claims=(Claim(batch="b", task=0, slice=1, attempt=1, lease="$JS.ACK.x"),)),
    Event(kind="stalled", at=1.5, text="nothing moves", cause="no_worker", remedy="start one"),
    AttemptTimeouts(ratio=3.0, train={1: 2.5}),
    Slice(batch="7", task_number=1, number=0, run_ids=(0, 3), task=TASK, lane="urgent"),
    Status(completed_runs=0, total_runs=0),
    TrainBatchManifest(
        run="r",
        batch="b",
        tasks=1,
        finished_task_count=1,
        runs=2,
        completed_runs=2,
        experiences=2,
        parts=Parts(stream="EXMQ_r_RESULTS", seq=(5,), experiences=(2,), bytes=(99,)),
    ),
    WorkerBeat(
        worker="w",
        pools=("default",),
        state="ready",
        slots=2,
        running=(RunningSlice(batch="b", task=0, slice=0, attempt=1, started_at=2.5),),
    ),
]
ENTRIES = [
    journal.Submitting(
        batch=7,
        batch_type="train",
        groups=(journal.TaskGroup(count=2, repeat_times=4, runs_per_slice=1),),
        at=1.25,
        tasks=REF,
        results_seq=0,
        deadline_s=60,
        timeout_s=30,
        max_attempts=3,
    ),
    journal.Running(batch="7"),
    journal.Finalizing(batch=7, results=((1, 3), (5, 5)), reason="enough"),
    journal.Finalized(
        batch=7,
        batch_type="train",
        finished_task_count=2,
        completed_runs=8,
        experiences=8,
        metrics={"a": 0.1},
    ),
    journal.Aborted(batch=7, batch_type="eval", reason="asked"),
    journal.Snapshot(state=REF, journal_seq=5, results_seq=9),
]
named = pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
entries = pytest.mark.parametrize("entry", ENTRIES, ids=lambda m: type(m).__name__)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def changed(message, **fields):
    return orjson.dumps({**orjson.loads(message.encode()), **fields})


def test_every_message_has_a_sample():
    assert {type(sample) for sample in SAMPLES} == set(MESSAGES)


@named
def test_message_survives_the_round_trip(message):
    assert type(message).decode(message.encode()) == message
    assert type(message).decode(memoryview(message.encode())) == message


@named
def test_message_ignores_fields_it_does_not_know(message):
    assert type(message).decode(changed(message, later={"a": 1})) == message


@named
@pytest.mark.parametrize("major", [0, 2, "2", None, "one"])
def test_message_of_another_major_is_refused(message, major):
    with pytest.raises(ContractError, match="schema_version"):
        type(message).decode(changed(message, schema_version=major))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"\xff", b"{}"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ContractError):
        Slice.decode(data)


@given(st.dictionaries(st.sampled_from(sorted(Slice.model_fields)), json_values))
def test_wrong_fields_are_refused_with_a_contract_error(fields):
    with pytest.raises(ContractError):
        Slice.decode(orjson.dumps(fields))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), json_values))
def test_raw_task_survives(raw):
    assert Task.decode(Task(raw_task=raw).encode()).raw_task == raw


@pytest.mark.parametrize("value", [object(), "\ud800", 2**70, {1, "a", object()}])
def test_task_that_cannot_be_json_is_refused(value):
    with pytest.raises(InvalidRequest, match="Task"):
        Task(raw_task={"a": value}).encode()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_number_json_lacks_is_refused_at_once(number):
    with pytest.raises(ValidationError, match="finite"):
        Result(worker="w", attempt=1, seconds=0, run_ids=(0,), metrics=({"a": number},))


def test_unknown_sampling_parameter_is_refused_rather_than_ignored():
    work = changed(TASK, rollout_args={"temprature": 0.0})
    with pytest.raises(ContractError, match="temprature"):
        Task.decode(work)


@pytest.mark.parametrize("report", [ATTEMPT, SAMPLES[8]], ids=["attempt", "result"])
def test_header_is_one_line_of_ascii(report):
    header = report.to_header()
    assert header.isascii()
    assert header.isprintable()
    assert type(report).decode(header) == report
    assert json.loads(header)["schema_version"] == 1


def test_failure_text_may_hold_what_json_cannot():
    failure = Failure(code="error", kind="OSError", message="no file \udcff", traceback="\ud800")
    report = ATTEMPT.model_copy(update={"failure": failure})
    assert Attempt.decode(report.to_header()) == report
    assert DeadLetter(subject="s", reason="r", worker="w", failure=failure).encode()


def test_missing_runs_are_those_not_completed():
    assert SAMPLES[8].missing == (0,)


@entries
def test_journal_entry_survives_the_round_trip(entry):
    assert journal.decode_entry(entry.encode()) == entry


@entries
def test_journal_entry_of_another_major_is_refused(entry):
    with pytest.raises(ContractError, match="schema version 2"):
        journal.decode_entry(changed(entry, schema_version=2))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"entry":"later","batch":1}'])
def test_unknown_journal_entry_is_refused(data):
    with pytest.raises(ContractError, match="journal entry"):
        journal.decode_entry(data)


@pytest.mark.parametrize("error", [family("what") for family in errors._FAMILIES])
def test_error_crosses_the_wire(error):
    again = errors.from_wire(**error.to_wire())
    assert type(again) is type(error)
    assert str(again) == "what"


def test_error_of_an_unknown_code_is_transient():
    assert type(errors.from_wire("later", "x")) is errors.TransientError


@pytest.mark.parametrize("token", ["a" * 300, "%C3%A9" * 60])
def test_overlong_token_is_a_broken_contract(token):
    with pytest.raises(ContractError):
        decode_token(token)


@pytest.mark.parametrize("number", ["007", "9" * 5000, "+1", "1_0"])
def test_number_that_is_not_canonical_is_refused(number):
    with pytest.raises(ContractError):
        RunNames("run").parse_slice(f"exmq.run.result.b.{number}.0")


def test_public_names_are_importable():
    for name in explorer_mq_schemas.__all__:
        assert getattr(explorer_mq_schemas, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = explorer_mq_schemas.nothing


def test_importing_the_contract_loads_nothing_heavy():
    heavy = "{'numpy', 'pydantic', 'torch', 'asyncio'} & set(sys.modules)"
    program = f"import sys, explorer_mq_schemas; sys.exit(bool({heavy}))"
    subprocess.run([sys.executable, "-c", program], check=True)
