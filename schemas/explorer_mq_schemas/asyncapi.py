"""The AsyncAPI description of a run's subjects, as one literal table and how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from explorer_mq_schemas.codec import FORMAT
from explorer_mq_schemas.messages import SCHEMA_MAJOR
from explorer_mq_schemas.results import ATTEMPT_HEADER, RESULT_HEADER
from explorer_mq_schemas.subjects import Lane

_EXPERIENCES = "application/vnd.safetensors"
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """One subject: its address, stream, who sends and receives, and what a message holds.

    ``schema`` names the JSON Schema of the body; without one the body is bytes of ``content_type``.
    ``header`` is a header that holds a JSON document of schema ``header_schema``. An empty
    ``stream`` means core NATS: volatile.
    """

    address: str
    stream: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    summary: str
    schema: str = ""
    content_type: str = "application/json"
    header: str = ""
    header_schema: str = ""


_SLICE = "{batch}.{task}.{slice}"

CHANNELS: Mapping[str, ChannelSpec] = {
    "tasks": ChannelSpec(
        address="exmq.{run}.task.{pool}.{lane}." + _SLICE,
        stream="EXMQ_{run}_TASKS",
        senders=("coordinator",),
        receivers=("worker",),
        summary="Work queue. One message is one slice: the unit of lease and retry. With header "
        "Exmq-Object the body is an ObjectRef to the slice instead.",
        schema="Slice",
    ),
    "results": ChannelSpec(
        address="exmq.{run}.result." + _SLICE,
        stream="EXMQ_{run}_RESULTS",
        senders=("worker",),
        receivers=("coordinator", "trainer"),
        summary="The one result of a slice: status in the header, packed experiences in the body. "
        "Published with Nats-Expected-Last-Subject-Sequence 0, so the first result wins.",
        content_type=_EXPERIENCES,
        header=RESULT_HEADER,
        header_schema="Result",
    ),
    "attempts": ChannelSpec(
        address="exmq.{run}.attempt." + _SLICE,
        stream="EXMQ_{run}_RESULTS",
        senders=("worker",),
        receivers=("coordinator", "worker"),
        summary="An attempt that ended without a result; the slice was handed back. Empty body.",
        content_type=_OCTETS,
        header=ATTEMPT_HEADER,
        header_schema="Attempt",
    ),
    "objects": ChannelSpec(
        address="exmq.{run}.object.{batch}.{rest}.{chunk}",
        stream="EXMQ_{run}_RESULTS",
        senders=("worker", "coordinator"),
        receivers=("coordinator", "worker", "trainer"),
        summary="Chunk of a payload over the message limit, found by an ObjectRef. `rest` is one "
        "or more tokens.",
        content_type=_OCTETS,
    ),
    "journal": ChannelSpec(
        address="exmq.{run}.journal",
        stream="EXMQ_{run}_JOURNAL",
        senders=("coordinator",),
        receivers=("coordinator",),
        summary="The coordinator's decisions about batches; a single writer, fenced by the "
        "expected last sequence.",
        schema="JournalEntry",
    ),
    "trainingBatches": ChannelSpec(
        address="exmq.{run}.train.{batch}.{part}",
        stream="EXMQ_{run}_TRAIN",
        senders=("coordinator",),
        receivers=("trainer",),
        summary="A finished batch. Part 0 is the manifest; it names the messages that hold the "
        "experiences by stream and sequence.",
        schema="TrainBatchManifest",
    ),
    "deadLetters": ChannelSpec(
        address="exmq.{run}.dead." + _SLICE,
        stream="EXMQ_{run}_DEAD",
        senders=("worker",),
        receivers=("operator",),
        summary="A slice that was given up, with its history. A message that names no slice goes "
        "to exmq.{run}.dead.malformed.",
        schema="DeadLetter",
    ),
    "weights": ChannelSpec(
        address="exmq.{run}.weights.{version}.{chunk}",
        stream="EXMQ_{run}_WEIGHTS",
        senders=("trainer",),
        receivers=("worker",),
        summary="Chunk of a policy version's weights: together one safetensors buffer of Hugging "
        "Face tensor names.",
        content_type=_OCTETS,
    ),
    "policy": ChannelSpec(
        address="$KV.EXMQ_{run}_STATE.policy",
        stream="KV_EXMQ_{run}_STATE",
        senders=("trainer",),
        receivers=("worker", "trainer"),
        summary="The newest policy version; written only after its weights are complete.",
        schema="PolicyAnnouncement",
    ),
    "timeouts": ChannelSpec(
        address="$KV.EXMQ_{run}_STATE.timeouts",
        stream="KV_EXMQ_{run}_STATE",
        senders=("coordinator",),
        receivers=("worker",),
        summary="How long attempts take; workers end those that take several times as long.",
        schema="AttemptTimeouts",
    ),
    "cancel": ChannelSpec(
        address="exmq.{run}.cancel",
        stream="",
        senders=("coordinator",),
        receivers=("worker",),
        summary="Stop work that nobody needs any more.",
        schema="Cancel",
    ),
    "beats": ChannelSpec(
        address="exmq.{run}.worker.{worker}.beat",
        stream="",
        senders=("worker",),
        receivers=("coordinator", "operator"),
        summary="State of one worker, on change and at least every few seconds.",
        schema="WorkerBeat",
    ),
    "claims": ChannelSpec(
        address="exmq.{run}.worker.{worker}.claims",
        stream="",
        senders=("worker",),
        receivers=("coordinator",),
        summary="Slices a worker has just been given.",
        schema="Claims",
    ),
    "events": ChannelSpec(
        address="exmq.{run}.event.{kind}",
        stream="",
        senders=("coordinator",),
        receivers=("operator",),
        summary="Something happened that is worth telling; volatile.",
        schema="Event",
    ),
}

PARAMETERS: Mapping[str, str] = {
    "run": "Name of the run: 1 to 64 of A-Z a-z 0-9 _ -.",
    "pool": "Percent-encoded name of the worker pool.",
    "lane": "Workers drain urgent before normal.",
    "batch": "Percent-encoded batch id.",
    "task": "Number of the task within its batch, from 0.",
    "slice": "Number of the slice within its task, from 0.",
    "part": "Part of the training batch; 0 is the manifest.",
    "version": "Policy version.",
    "chunk": "Number of the chunk, from 0.",
    "worker": "Percent-encoded name of the worker.",
    "kind": "What kind of event.",
    "rest": "Percent-encoded tokens that tell the batch's objects apart.",
}


def document() -> dict[str, Any]:
    """The AsyncAPI 3.1 document; schemas are referred to as ``json/<Message>.json``."""
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "explorer-mq",
            "version": f"{SCHEMA_MAJOR}.0.0",
            "description": "Messages between coordinator, workers and trainers of one run on NATS "
            "JetStream. Control messages are JSON with schema_version; readers ignore fields they "
            f"do not know. Experiences are one safetensors buffer of format {FORMAT}. Ids from "
            "users are percent-encoded: bytes other than A-Z a-z 0-9 _ - become %XX.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name, spec) for name, spec in CHANNELS.items()},
        "operations": dict(_operations()),
        "components": {
            "messages": {name: _message(spec) for name, spec in CHANNELS.items()},
            "parameters": {name: _parameter(name, text) for name, text in PARAMETERS.items()},
        },
    }


def _channel(name: str, spec: ChannelSpec) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": spec.address, "description": spec.summary}
    used = [key for key in PARAMETERS if "{" + key + "}" in spec.address]
    channel["parameters"] = {key: {"$ref": f"#/components/parameters/{key}"} for key in used}
    channel["messages"] = {name: {"$ref": f"#/components/messages/{name}"}}
    if spec.stream:
        channel["x-jetstream-stream"] = spec.stream
    return channel


def _message(spec: ChannelSpec) -> dict[str, Any]:
    message: dict[str, Any] = {"contentType": spec.content_type}
    if spec.header:
        reference = f"./json/{spec.header_schema}.json"
        message["headers"] = {
            "type": "object",
            "required": [spec.header],
            "properties": {
                spec.header: {
                    "type": "string",
                    "description": f"ASCII JSON on one line, as {reference} describes it.",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": reference},
                }
            },
        }
    if spec.schema:
        message["payload"] = {"$ref": f"./json/{spec.schema}.json"}
    else:
        message["payload"] = {"type": "string", "format": "binary"}
    return message


def _parameter(name: str, text: str) -> dict[str, Any]:
    parameter: dict[str, Any] = {"description": text}
    if name == "lane":
        parameter["enum"] = [lane.value for lane in Lane]
    return parameter


def _operations() -> list[tuple[str, dict[str, Any]]]:
    operations = []
    for name, spec in CHANNELS.items():
        for action, actors in (("send", spec.senders), ("receive", spec.receivers)):
            for actor in actors:
                title = f"{actor}{action.capitalize()}s{name[0].upper()}{name[1:]}"
                channel = {"$ref": f"#/channels/{name}"}
                tags = [{"name": actor}]
                operations.append((title, {"action": action, "channel": channel, "tags": tags}))
    return operations
