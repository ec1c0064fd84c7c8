"""All monitors together: the run only ever sees calls that return."""

from __future__ import annotations

import json
import logging
import sys
import types

import numpy as np
import pytest
from pydantic import ValidationError

from explorer_mq.monitors.fanout import Monitors
from explorer_mq.monitors.jsonl import JsonlMonitor
from explorer_mq.monitors.lane import Lane
from explorer_mq.monitors.protocol import MonitorOptions
from explorer_mq.monitors.rows import read_rows
from explorer_mq.monitors.settings import MonitorSettings
from explorer_mq_schemas.errors import ConfigError


@pytest.fixture
def settings(tmp_path):
    return MonitorSettings(dir=tmp_path)


def rows_of(tmp_path, run="r1"):
    return list(read_rows(tmp_path / run / "metrics.jsonl"))


def test_json_lines_are_written_without_any_setting(tmp_path, settings):
    with Monitors.open(settings, "r1") as monitors:
        monitors.log({"a": np.float32(1.5), "b": True}, np.int64(1))
        assert [(row["step"], row["a"], row["b"]) for row in rows_of(tmp_path)] == [(1, 1.5, 1.0)]
        monitors.log_table("t", ["c"], [["x"]], 1)
    assert json.loads((tmp_path / "r1" / "tables.jsonl").read_text())["rows"] == [["x"]]
    assert monitors.errors() == {"jsonl": 0}


def test_every_monitor_gets_its_own_copy_of_every_row(tmp_path, recorder):
    monitors = Monitors(JsonlMonitor(tmp_path), [Lane("it", lambda: recorder)])
    data = {"a": 1.0}
    monitors.log(data, 1)
    data["a"] = 2.0
    monitors.log(data, 2)
    monitors.log({"a": 9.0}, 2)
    monitors.log(data, 2, kind="eval")
    monitors.log_table("t", ["c"], [[1]], 2)
    assert monitors.close()
    assert recorder.rows == [(1, {"a": 1.0}), (2, {"a": 2.0}), (2, {"a": 2.0})]
    assert recorder.tables == [("t", ("c",), ((1,),), 2)]
    assert monitors.faults.lost == 1


def test_what_is_no_number_is_left_out_and_named(tmp_path, settings, caplog):
    with Monitors.open(settings, "r1") as monitors:
        for step in range(3):
            monitors.log({"good": 1.0, "bad": "text"}, step)
        monitors.log({"bad": None}, 4)
        monitors.log({}, 5)
        monitors.log({"good": 1.0}, "not a step")
        monitors.log(None, 6)
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1, 2]
    assert all("bad" not in row for row in rows_of(tmp_path))
    assert sum("'bad' is no number" in message for message in caplog.messages) == 1
    assert monitors.faults.errors == 2


def test_a_full_disk_is_reported_once_and_the_others_get_their_rows(tmp_path, recorder, caplog):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monitors = Monitors(JsonlMonitor(tmp_path), [Lane("it", lambda: recorder)])
    for step in range(3):
        monitors.log({"a": 1.0}, step)
    assert not monitors.close()
    assert [step for step, _ in recorder.rows] == [0, 1, 2]
    assert monitors.errors() == {"jsonl": 4, "it": 0}
    assert sum("No space left" in message for message in caplog.messages) == 1
    assert "could not be written" in caplog.text


def test_a_directory_that_cannot_be_made_is_reported(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monitors = Monitors.open(MonitorSettings(dir=tmp_path / "file"), "r1")
    monitors.log({"a": 1.0}, 1)
    assert not monitors.close(deadline_s=0)
    assert "NotADirectoryError" in caplog.text


def test_one_hanging_monitor_delays_neither_the_others_nor_the_close(tmp_path, recorder):
    recorder.hold.clear()
    quick = type(recorder)()
    lanes = [Lane("hangs", lambda: recorder), Lane("quick", lambda: quick)]
    monitors = Monitors(JsonlMonitor(tmp_path), lanes)
    monitors.log({"a": 1.0}, 1)
    assert recorder.entered.wait(10)
    monitors.log({"a": 1.0}, 2)
    quick.wait_calls(2)
    assert not monitors.close(deadline_s=0.2)
    assert quick.closed.is_set()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_rows_after_the_close_are_left_out(tmp_path, settings, caplog):
    monitors = Monitors.open(settings, "r1")
    monitors.log({"a": 1.0}, 1)
    assert monitors.close()
    assert monitors.close()
    monitors.log({"a": 1.0}, 2)
    assert len(rows_of(tmp_path)) == 1
    assert "the monitors are closed" in caplog.text


def test_user_monitors_are_named_by_module_and_attribute(tmp_path, recorder, monkeypatch):
    module = types.ModuleType("their_monitor")
    module.opened = []

    def opening(options):
        module.opened.append(options)
        return recorder

    module.opening = opening
    monkeypatch.setitem(sys.modules, "their_monitor", module)
    kind = "their_monitor:opening"
    settings = MonitorSettings(kinds=[kind], dir=tmp_path, name="n", options={kind: {"x": 1}})
    with Monitors.open(settings, "r1") as monitors:
        monitors.log({"a": 1.0}, 1)
    assert module.opened == [MonitorOptions(tmp_path, "explorer-mq", "n", {"x": 1})]
    assert recorder.rows == [(1, {"a": 1.0})]


def test_wrong_kinds_are_refused_at_the_start(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        Monitors.open(MonitorSettings(kinds=["tensorbord"], dir=tmp_path), "r1")
    monkeypatch.setattr("explorer_mq.monitors.fanout.is_installed", lambda name: False)
    with pytest.raises(ConfigError, match=r"pip install 'explorer-mq\[wandb\]'"):
        Monitors.open(MonitorSettings(kinds=["wandb"], dir=tmp_path), "r1")
    with pytest.raises(ConfigError, match="cannot be called"):
        Monitors.open(MonitorSettings(kinds=["sys:maxsize"], dir=tmp_path), "r1")
    with pytest.raises(ConfigError, match="are a table"):
        Monitors.open(MonitorSettings(kinds=["os:stat"], options={"os:stat": 3}), "r1")


def test_kinds_may_be_one_text_and_repeats_count_once():
    assert MonitorSettings(kinds="wandb, mlflow,wandb").kinds == ("wandb", "mlflow")
    assert MonitorSettings(kinds=["a", "a"]).kinds == ("a",)
    with pytest.raises(ValidationError):
        MonitorSettings(kinds=3)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("run-1", "run-1"), ("a/b", "a%2Fb"), ("..", "%2E."), ("é x", "%C3%A9 x"), (".hid", "%2Ehid")],
)
def test_any_name_is_one_folder(tmp_path, name, folder):
    assert MonitorOptions(tmp_path, "p", name).folder == folder


def test_nothing_is_logged_when_all_is_well(tmp_path, settings, caplog):
    caplog.set_level(logging.DEBUG, logger="explorer_mq")
    with Monitors.open(settings, "r1") as monitors:
        monitors.log({"a": 1.0}, 1)
    assert caplog.messages == []
