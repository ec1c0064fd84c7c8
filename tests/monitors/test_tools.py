"""What each tool is told, against stand-ins of their modules: only what we call is there."""

from __future__ import annotations

import sys
import types
from unittest.mock import MagicMock, call

import pytest

from explorer_mq.monitors.libraries import library
from explorer_mq.monitors.mlflow import MlflowMonitor, metric_name
from explorer_mq.monitors.protocol import GROUP, MonitorOptions
from explorer_mq.monitors.swanlab import SwanlabMonitor
from explorer_mq.monitors.tables import as_markdown
from explorer_mq.monitors.trackio import TrackioMonitor
from explorer_mq.monitors.wandb import WandbMonitor
from explorer_mq.plugins import load, names
from explorer_mq_schemas.errors import ConfigError


@pytest.fixture
def module(monkeypatch):
    """Puts a stand-in of a module where imports find it."""

    def put(name, **attributes):
        found = types.ModuleType(name)
        vars(found).update(attributes)
        monkeypatch.setitem(sys.modules, name, found)
        return found

    return put


@pytest.fixture
def options(tmp_path):
    return MonitorOptions(tmp_path, "proj", "run 1", {})


def of_user(options, **own):
    return MonitorOptions(options.dir, options.project, options.name, own)


def test_all_tools_are_entry_points_and_name_their_module():
    tools = ("mlflow", "swanlab", "tensorboard", "trackio", "wandb")
    assert set(tools) <= set(names(GROUP))
    assert [load(tool, GROUP).requires for tool in tools] == list(tools)


def test_importing_a_tool_s_file_does_not_import_the_tool():
    import subprocess

    code = """
import sys
from explorer_mq.monitors import fanout, mlflow, swanlab, tensorboard, trackio, wandb
heavy = {"mlflow", "swanlab", "tensorboard", "trackio", "wandb", "torch", "pandas"}
sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wandb_is_offline_resumable_and_lets_rows_come_late(module, options):
    wandb = module("wandb", init=MagicMock(), Table=MagicMock(return_value="table"))
    monitor = WandbMonitor(options)
    opened = wandb.init.call_args.kwargs
    assert (opened["mode"], opened["id"], opened["resume"]) == ("offline", "run-1", "allow")
    assert (opened["project"], opened["name"]) == ("proj", "run 1")
    assert opened["settings"]["console"] == "off"
    run = wandb.init.return_value
    monitor.log({"a@2": 1.0}, 7)
    monitor.log({"late": 1.0}, 3)
    monitor.log_table("t", ("c",), ((1,),), 7)
    monitor.close()
    assert run.mock_calls == [
        call.define_metric("step"),
        call.define_metric("*", step_metric="step"),
        call.log({"a@2": 1.0, "step": 7}),
        call.log({"late": 1.0, "step": 3}),
        call.log({"t": "table", "step": 7}),
        call.finish(),
    ]
    assert wandb.Table.call_args.kwargs["data"] == [[1]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("wandb", WandbMonitor), ("trackio", TrackioMonitor), ("swanlab", SwanlabMonitor)],
)
def test_options_of_the_user_win(module, options, name, kind, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", "theirs")
    tool = module(name, init=MagicMock())
    kind(of_user(options, mode="online", project="mine", extra=1))
    opened = tool.init.call_args.kwargs
    assert (opened["mode"], opened["project"], opened["extra"]) == ("online", "mine", 1)


def test_trackio_is_local_and_keeps_off_standard_output(module, options, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", "")
    monkeypatch.delenv("TRACKIO_DIR")
    trackio = module("trackio", Table=MagicMock(return_value="table"))
    module("pandas", DataFrame=MagicMock(return_value="frame"))
    run = MagicMock()

    def init(**opened):
        trackio.print("hello")
        assert (opened["resume"], opened["name"]) == ("allow", "run 1")
        return run

    trackio.init = init
    monitor = TrackioMonitor(options)
    import os

    assert os.environ["TRACKIO_DIR"] == str(options.dir / "trackio")
    monitor.log({"a": 1.0}, 7)
    monitor.log_table("t", ("c",), ((1,),), 7)
    monitor.close()
    assert run.mock_calls == [
        call.log({"a": 1.0}, step=7),
        call.log({"t": "table"}, step=7),
        call.finish(),
    ]
    assert trackio.Table.call_args == call(dataframe="frame")
    assert capsys.readouterr() == ("", "hello\n")


def test_swanlab_is_offline_and_gets_tables_as_text(module, options):
    swanlab = module("swanlab", init=MagicMock(), Text=lambda text: ("text", text))
    monitor = SwanlabMonitor(options)
    opened = swanlab.init.call_args.kwargs
    assert (opened["mode"], opened["log_dir"]) == ("offline", str(options.dir / "swanlab"))
    assert opened["settings"]["terminal"] == {"proxy_type": "none"}
    monitor.log({"a": 1.0}, 7)
    monitor.log_table("t", ("c",), ((1,),), 7)
    monitor.close()
    assert swanlab.init.return_value.mock_calls == [
        call.log({"a": 1.0}, step=7),
        call.log({"t": ("text", "| c |\n| --- |\n| 1 |")}, step=7),
        call.finish(),
    ]


@pytest.fixture
def mlflow(module, monkeypatch):
    """A client of MLflow that knows no experiment and no run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MagicMock()
    client.get_experiment_by_name.return_value = None
    client.create_experiment.return_value = "7"
    client.search_runs.return_value = []
    client.create_run.return_value.info.run_id = "id"
    client.opening = MagicMock(return_value=client)
    module("mlflow")
    module("mlflow.entities", Metric=lambda key, value, _, step: (key, value, step))
    module("mlflow.tracking", MlflowClient=client.opening)
    return client


def test_mlflow_gets_names_it_takes(mlflow, options):
    monitor = MlflowMonitor(options)
    assert mlflow.opening.call_args.kwargs["tracking_uri"].startswith("sqlite:///")
    monitor.log({"eval/math/acc/mean@4": 0.5}, 3)
    assert mlflow.log_batch.call_args == call("id", metrics=[("eval/math/acc/mean_at_4", 0.5, 3)])
    monitor.log({str(number): 0.0 for number in range(2500)}, 4)
    sizes = [len(each.kwargs["metrics"]) for each in mlflow.log_batch.call_args_list]
    assert sizes == [1, 1000, 1000, 500]
    monitor.log_table("t@1", ("c",), ((options,),), 3)
    content = {"columns": ["c"], "data": [[str(options)]]}
    assert mlflow.log_dict.call_args == call("id", content, "tables/t_at_1/3.json")
    monitor.close()
    mlflow.set_terminated.assert_called_once_with("id")


def test_mlflow_continues_the_run_of_that_name(mlflow, options):
    mlflow.get_experiment_by_name.return_value = MagicMock(experiment_id="9")
    mlflow.search_runs.return_value = [MagicMock()]
    mlflow.search_runs.return_value[0].info.run_id = "old"
    MlflowMonitor(of_user(options, tracking_uri="http://there")).log({"a": 1.0}, 1)
    assert mlflow.opening.call_args == call(tracking_uri="http://there")
    assert mlflow.search_runs.call_args == call(
        ["9"], filter_string='attributes.run_name = "run 1"', max_results=1
    )
    mlflow.create_run.assert_not_called()
    assert mlflow.log_batch.call_args.args == ("old",)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("eval/s/acc/best@2", "eval/s/acc/best_at_2"),
        ("a b.c-d_e:f", "a b.c-d_e:f"),
        ("50%(ü)", "50____"),
        ("/a//b/", "a/b"),
        ("../x", "__/x"),
    ],
)
def test_mlflow_names(name, taken):
    assert metric_name(name) == taken


def test_markdown_keeps_a_table_a_table():
    text = as_markdown(["a", "b|c"], [["x\ny", None], ["|", "\\"]])
    assert text.splitlines() == [
        "| a | b\\|c |",
        "| --- | --- |",
        "| x<br>y | None |",
        "| \\| | \\\\ |",
    ]


def test_a_library_that_is_not_there_is_named_with_its_extra(module, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"pip install 'explorer-mq\[wandb\]'"):
        library("no_such_module.part", extra="wandb")
    (tmp_path / "broken_tool.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        library("broken_tool", extra="wandb")
