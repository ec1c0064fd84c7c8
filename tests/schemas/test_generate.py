"""The generated contract is current, and says what the code does."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from explorer_mq_schemas.asyncapi import CHANNELS, PARAMETERS, document
from explorer_mq_schemas.generate import main, render
from explorer_mq_schemas.subjects import Lane, RunNames, SliceKey

SCHEMAS = Path(__file__).parents[2] / "schemas"


def test_committed_files_are_current():
    committed = {
        str(path.relative_to(SCHEMAS)): path.read_text(encoding="utf-8")
        for path in (*SCHEMAS.glob("json/*.json"), SCHEMAS / "asyncapi.yaml")
    }
    assert committed == render(), "run: python -m explorer_mq_schemas.generate"


def test_yaml_holds_the_document():
    assert yaml.safe_load(render()["asyncapi.yaml"]) == json.loads(json.dumps(document()))


@pytest.mark.parametrize("name", [name for name in render() if name.endswith(".json")])
def test_json_schema_is_valid(name):
    jsonschema.Draft202012Validator.check_schema(json.loads(render()[name]))


def references(value):
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_leads_somewhere():
    described = document()
    for reference in references(described):
        if reference.startswith("./"):
            assert reference.removeprefix("./") in render()
            continue
        found = described
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_addresses_and_streams_are_those_of_the_code():
    names, key = RunNames("r"), SliceKey("b", 1, 2)
    values = {"run": "r", "pool": "p", "lane": "urgent", "batch": "b", "task": 1, "slice": 2}
    values |= {"part": 3, "version": 4, "chunk": 5, "worker": "w", "rest": "x.y", "kind": "k"}
    assert values.keys() == PARAMETERS.keys()
    wanted = {
        "tasks": (names.task("p", Lane.URGENT, key), names.tasks_stream),
        "results": (names.result(key), names.results_stream),
        "attempts": (names.attempt(key), names.results_stream),
        "objects": (names.object("b", "x", "y") + ".5", names.results_stream),
        "journal": (names.journal, names.journal_stream),
        "trainingBatches": (names.train("b", 3), names.train_stream),
        "deadLetters": (names.dead(key), names.dead_stream),
        "weights": (names.weights(4) + ".5", names.weights_stream),
        "policy": (names.state("policy"), names.state_stream),
        "cancel": (names.cancel, ""),
        "beats": (names.beat("w"), ""),
        "timeouts": (names.state("timeouts"), names.state_stream),
        "claims": (names.claims("w"), ""),
        "events": (names.event("k"), ""),
    }
    found = {
        name: (spec.address.format(**values), spec.stream.format(**values))
        for name, spec in CHANNELS.items()
    }
    assert found == wanted


def test_generate_writes_only_what_changed(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(render())
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
