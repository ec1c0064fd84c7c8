"""JSON lines: one row per kind and step, whatever kills or shares the file."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from explorer_mq.monitors.jsonl import JsonlMonitor
from explorer_mq.monitors.rows import RowFile, read_rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(folder, *steps, kind="metrics", **values):
    monitor = JsonlMonitor(folder)
    for step in steps:
        monitor.log(values or {"x": float(step)}, step, kind=kind)
    monitor.close()


def steps_in(path):
    return [(row["kind"], row["step"]) for row in read_rows(path)]


def test_rows_are_json_objects_with_step_and_kind(tmp_path, path):
    write(tmp_path, 3, **{"rollout/r/mean": 0.5, "bad": float("nan"), "step": 99.0})
    (line,) = path.read_text().splitlines()
    row = json.loads(line)
    assert row.pop("logged_at") > 1e9
    assert row == {"kind": "metrics", "step": 3, "rollout/r/mean": 0.5, "bad": None}


def test_a_resumed_run_continues_the_file_without_repeating_rows(tmp_path, path):
    write(tmp_path, 1, 2, 3, x=1.0)
    before = path.read_bytes()
    write(tmp_path, 2, 3, 4, x=2.0)
    assert path.read_bytes().startswith(before)
    assert steps_in(path) == [("metrics", step) for step in (1, 2, 3, 4)]


def test_rows_of_one_step_are_told_apart_by_kind(tmp_path, path):
    write(tmp_path, 1)
    write(tmp_path, 1, kind="eval/math")
    write(tmp_path, 1, kind="eval/math")
    assert steps_in(path) == [("metrics", 1), ("eval/math", 1)]


def test_a_line_torn_anywhere_is_repaired_and_its_row_written_again(tmp_path, path):
    write(tmp_path, 1, 2)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(second, len(whole) + 1):
        path.write_bytes(whole[:length])
        assert [step for _, step in steps_in(path)] == ([1, 2] if length == len(whole) else [1])
        write(tmp_path, 2, 3)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_foreign_lines_are_kept_and_skipped(tmp_path, path):
    path.write_bytes(b'\x00\x00garbage\n[1]\n{"step": "x"}\n\n{"no": "kind", "step": 4}\n')
    write(tmp_path, 4)
    assert len(path.read_bytes().splitlines()) == 6
    assert [row.get("kind") for row in read_rows(path)] == [None, None, "metrics"]


def test_kills_between_row_and_checkpoint_leave_each_row_once(tmp_path, path):
    """A run that is killed as often as it writes; its checkpoint lags the file by a step."""
    code = """
import os, pathlib, signal, sys
from explorer_mq.monitors.jsonl import JsonlMonitor
folder, die_at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
checkpoint = folder / "checkpoint"
monitor = JsonlMonitor(folder)
for step in range(int(checkpoint.read_text()) if checkpoint.exists() else 0, 6):
    monitor.log({"x": float(step)}, step)
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.write_text(str(step + 1))
"""
    for die_at in (0, 2, 3, -1):
        done = subprocess.run([sys.executable, "-c", code, tmp_path, str(die_at)], check=False)
        assert done.returncode == (0 if die_at < 0 else -signal.SIGKILL)
        with path.open("ab") as file:
            file.write(b'{"kind":"metrics","step":')  # the row it died in
    assert [row["step"] for row in read_rows(path)] == list(range(6))


def test_two_writers_of_one_file_never_double_a_row(tmp_path, path):
    first, second = JsonlMonitor(tmp_path), JsonlMonitor(tmp_path)
    for step in range(20):
        first.log({"by": 1.0}, step)
        second.log({"by": 2.0}, step)
        second.log({"by": 2.0}, step + 1)
    first.close()
    second.close()
    assert [row["step"] for row in read_rows(path)] == list(range(21))


def test_a_row_waits_while_another_process_holds_the_file(tmp_path, path):
    write(tmp_path, 1)
    monitor = JsonlMonitor(tmp_path)
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process holds"):
            monitor.log({"x": 2.0}, 2)
        assert monitor.waiting == 1
    monitor.log({"x": 3.0}, 3)
    assert [step for _, step in steps_in(path)] == [1, 2, 3]


def test_rows_wait_for_space_on_a_full_disk(tmp_path, path):
    path.symlink_to("/dev/full")
    monitor = JsonlMonitor(tmp_path)
    for step in (1, 2, 2):
        with pytest.raises(OSError, match="No space left"):
            monitor.log({"x": 1.0}, step)
    assert monitor.waiting == 2
    path.unlink()
    monitor.close()
    assert [step for _, step in steps_in(path)] == [1, 2]


def test_half_a_row_is_taken_back_when_the_disk_fills_within_it(tmp_path, path):
    code = """
import pathlib, resource, sys
from explorer_mq.monitors.jsonl import JsonlMonitor
folder = pathlib.Path(sys.argv[1])
monitor = JsonlMonitor(folder)
monitor.log({"x": 1.0}, 1)
size = (folder / "metrics.jsonl").stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
try:
    monitor.log({"x": 2.0}, 2)
except OSError as error:
    print(error.strerror, (folder / "metrics.jsonl").stat().st_size == size)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
monitor.log({"x": 3.0}, 3)
"""
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("only part of a row fits")
    assert done.stdout.strip().endswith("True")
    assert [step for _, step in steps_in(path)] == [1, 2, 3]


def test_the_oldest_rows_are_given_up_when_too_many_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("explorer_mq.monitors.rows._BACKLOG", 3)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    rows = RowFile(full)
    for step in range(5):
        with pytest.raises(OSError, match="No space"):
            rows.append(("k", step), json.dumps({"kind": "k", "step": step}).encode())
    assert (rows.waiting, rows.given_up) == (3, 2)
    full.unlink()
    rows.close()
    assert [row["step"] for row in read_rows(full)] == [2, 3, 4]


def test_a_file_that_was_replaced_or_emptied_is_written_anew(tmp_path, path):
    monitor = JsonlMonitor(tmp_path)
    monitor.log({"x": 1.0}, 1)
    os.truncate(path, 0)
    monitor.log({"x": 2.0}, 2)
    monitor.close()
    assert [step for _, step in steps_in(path)] == [2]


def test_tables_keep_cells_of_all_kinds(tmp_path):
    monitor = JsonlMonitor(tmp_path)
    monitor.log_table("samples", ["a", "b"], [["\ud800", 2**70], [None, tmp_path]], 5)
    monitor.log_table("samples", ["a", "b"], [["again", 1]], 5)
    monitor.close()
    (row,) = (json.loads(line) for line in (tmp_path / "tables.jsonl").read_text().splitlines())
    assert row["columns"] == ["a", "b"]
    assert row["rows"] == [["\ud800", 2**70], [None, str(tmp_path)]]
