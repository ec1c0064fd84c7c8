"""The tools themselves, where they are installed; two processes, the second resumes the run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import subprocess
import sys

import pytest

_RUN = """
import sys
from pathlib import Path
from explorer_mq.monitors.fanout import Monitors
from explorer_mq.monitors.settings import MonitorSettings

kind, folder, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
monitors = Monitors.open(MonitorSettings(kinds=(kind,), dir=folder, project="proj"), "run-1")
monitors.log({"eval/s/acc/mean@4": 0.25, "r": float("nan")}, step)
monitors.log({"r": 0.75}, step + 1)
monitors.log({"late": 0.5}, 1, kind="eval")
monitors.log_table("samples", ["prompt", "reward"], [["a|b\\nc", 1.0], ["d", None]], step)
assert monitors.close(60)
assert monitors.errors() == {"jsonl": 0, kind: 0}, monitors.errors()
assert monitors.lanes[0].faults.lost == 0
"""


@pytest.fixture
def run_twice(tmp_path):
    """Logs steps 1 and 2, then as another process 5 and 6; returns the folder."""

    def run(kind):
        if importlib.util.find_spec(kind) is None:
            pytest.skip(f"{kind} is not installed")
        hidden = ("TRACKIO", "WANDB", "SWANLAB", "MLFLOW")
        environ = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        for step in (1, 5):
            command = [sys.executable, "-c", _RUN, kind, tmp_path, str(step)]
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environ
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout == ""
        return tmp_path

    return run


def test_tensorboard_reads_the_event_files(run_twice):
    folder = run_twice("tensorboard")
    code = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1])
found.Reload()
assert found.Tags()["scalars"] == ["eval/s/acc/mean@4", "r", "late"], found.Tags()
assert [event.step for event in found.Scalars("r")] == [1, 2, 5, 6]
assert [event.value for event in found.Scalars("eval/s/acc/mean@4")] == [0.25, 0.25]
(text,) = found.Tensors("samples")[0].tensor_proto.string_val
assert text.decode().splitlines()[2] == "| a\\\\|b<br>c | 1.0 |", text
assert not {"torch", "tensorflow"} & set(sys.modules)
"""
    files = folder / "tensorboard" / "run-1"
    assert len(list(files.iterdir())) == 2
    subprocess.run([sys.executable, "-c", code, files], check=True)


def test_trackio_has_one_run_with_all_rows(run_twice):
    database = run_twice("trackio") / "trackio" / "proj.db"
    with contextlib.closing(sqlite3.connect(database)) as found:
        rows = found.execute(
            "select run_name, step from metrics where cast(metrics as text) like '%\"r\":%'"
        ).fetchall()
        assert sorted(rows) == [("run-1", step) for step in (1, 2, 5, 6)]


def test_mlflow_has_one_run_with_all_rows(run_twice):
    folder = run_twice("mlflow") / "mlflow"
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as found:
        assert found.execute("select name, status from runs").fetchall() == [("run-1", "FINISHED")]
        rows = found.execute("select key, step, is_nan from metrics order by key, step").fetchall()
    assert [row for row in rows if row[0] == "r"] == [
        ("r", step, int(is_nan)) for step, is_nan in ((1, 1), (2, 0), (5, 1), (6, 0))
    ]
    assert ("eval/s/acc/mean_at_4", 1, 0) in rows
    assert len(list(folder.glob("artifacts/*/artifacts/tables/samples/*.json"))) == 2


def test_wandb_writes_its_offline_files(run_twice):
    folder = run_twice("wandb") / "wandb"
    assert list(folder.glob("offline-run-*-run-1/run-run-1.wandb"))


def test_swanlab_writes_its_offline_files(run_twice):
    folder = run_twice("swanlab") / "swanlab"
    assert len(list(folder.glob("run-*/*.swanlab"))) == 2
