"""``config``: what is in force, where it came from, and the schema for editors."""

from __future__ import annotations

import json

from explorer_mq.cli.main import main
from explorer_mq.settings import reference


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_lists_every_setting_of_the_engine_in_force(capsys):
    assert main(["config", "show", "--json"]) == 0
    shown = {row["key"] for row in lines(capsys)}
    assert shown == {e.dotted for e in reference.entries() if e.variant in ("", "vllm")}


def test_show_follows_the_engine_type(capsys):
    assert main(["config", "show", "worker.engine", "--worker.engine.type", "synthetic"]) == 0
    text = capsys.readouterr().out
    assert "[worker.engine]" in text
    assert "fail_rate = 0.0" in text
    assert "gpu_memory_utilization" not in text


def test_show_says_where_each_value_came_from(tmp_path, capsys, monkeypatch):
    file = tmp_path / "a.toml"
    file.write_text("[worker]\nslots = 3\n")
    monkeypatch.setenv("EXPLORER_MQ_WORKER__POOLS", "a,b")
    words = ["config", "show", "worker", "@", str(file), "--worker.id", "w", "--json"]
    assert main(words) == 0
    found = {row["key"]: (row["value"], row["source"]) for row in lines(capsys)}
    assert found["worker.slots"] == (3, str(file))
    assert found["worker.pools"] == (["a", "b"], "EXPLORER_MQ_WORKER__POOLS")
    assert found["worker.id"] == ("w", "--worker.id")
    assert found["worker.beat_interval_s"] == (2.0, "default")
    assert main([*words[:-1], "--sources"]) == 0
    assert f"# from {file}" in capsys.readouterr().out


def test_show_writes_variables_that_are_read_back(capsys):
    assert main(["config", "show", "worker", "--env", "--worker.slots", "5"]) == 0
    assert "EXPLORER_MQ_WORKER__SLOTS=5 " in capsys.readouterr().out


def test_show_hides_the_password_of_a_url(capsys):
    assert main(["config", "show", "nats", "--nats.url", "nats://me:secret@host"]) == 0
    text = capsys.readouterr().out
    assert "nats://host" in text
    assert "secret" not in text


def test_schema_is_strict_and_describes_every_section(capsys):
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert {path[0] for path in reference.sections()} <= set(schema["properties"])


def test_check_exits_0_when_all_is_well(tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text('run = "r"\n')
    assert main(["config", "check", "@", str(file)]) == 0
    assert capsys.readouterr().out == f"ok: {file}, run r\n"
