"""The commands that speak to a coordinator, against a real run."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

pytestmark = pytest.mark.usefixtures("live_run")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "p{i}", "answer": "a"}}\n\n' for i in range(5)))
    return file


def new_id() -> str:
    return f"b-{uuid4().hex[:8]}"


def parsed(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_submit_waits_for_its_batch_and_exits_0(cli, rows):
    name = new_id()
    words = ("--batch-id", name, "--reward", "exact_match", "--repeat", "2", "--wait", "--json")
    code, out, err = cli("submit", rows, *words)
    submitted, result = parsed(out)
    assert submitted == {"batch_id": name, "tasks": 5, "state": "submitted"}
    assert (result["state"], result["finished_task_count"]) == ("finalized", 5)
    assert (code, err) == (0, "")


def test_submit_splits_the_file_when_a_batch_size_is_given(cli, rows):
    name = new_id()
    code, out, _ = cli("submit", rows, "--batch-id", name, "--batch-size", "2", "--json")
    assert code == 0
    assert [(row["batch_id"], row["tasks"]) for row in parsed(out)] == [
        (f"{name}-0", 2),
        (f"{name}-1", 2),
        (f"{name}-2", 1),
    ]
    assert cli("batch", "wait", f"{name}-2", "--timeout-s", "30")[0] == 0


def test_submit_keeps_the_id_when_the_file_fits_one_batch(cli, rows):
    name = new_id()
    code, out, _ = cli("submit", rows, "--batch-id", name, "--batch-size", "5", "--json")
    assert code == 0
    assert [row["batch_id"] for row in parsed(out)] == [name]


def test_submit_exits_1_when_runs_failed(cli, rows):
    code, out, _ = cli(
        "submit", rows, "--batch-id", new_id(), "--workflow", "nowhere:flow", "--wait", "--json"
    )
    assert parsed(out)[-1]["metrics"]["rollout/failed_runs"] == 5
    assert code == 1


def test_submit_refuses_an_id_that_is_used_up(cli, rows):
    name = new_id()
    assert cli("submit", rows, "--batch-id", name, "--wait")[0] == 0
    code, _, err = cli("submit", rows, "--batch-id", name)
    assert code == 2
    assert "a batch id is used once" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p", "answer": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ('{"prompt": "p", "answer": "a"}\n[1]\n', "line 2: a row must be a JSON object"),
        (
            '{"prompt": "p", "answer": 1}\n\n{"question": 2}\n',
            "line 3: no key 'prompt', the row has question",
        ),
        ("\n", "has no rows; nothing was submitted"),
    ],
)
def test_submit_submits_nothing_when_a_line_is_wrong(cli, tmp_path, text, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    name = new_id()
    code, out, err = cli("submit", file, "--batch-id", name, "--batch-size", "1")
    assert (code, out) == (2, "")
    assert message in err
    assert cli("batch", "show", f"{name}-0")[0] == 4


def test_submit_needs_the_response_key_when_a_reward_compares_it(cli, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "p"}\n')
    code, _, err = cli("submit", file, "--batch-id", new_id())
    assert code == 2
    assert "line 1: no key 'answer'" in err


def test_submit_refuses_a_missing_file(cli):
    code, _, err = cli("submit", "nowhere.jsonl", "--batch-id", "x")
    assert code == 2
    assert "nowhere.jsonl cannot be read: No such file" in err


def test_open_batch_is_listed_waited_for_and_aborted(cli, rows):
    name = new_id()
    assert cli("submit", rows, "--batch-id", name, "--pool", "nobody")[0] == 0
    code, out, _ = cli("batch", "ls", "--state", "running", "--json")
    assert code == 0
    assert name in [row["batch_id"] for row in parsed(out)]
    code, out, _ = cli("batch", "wait", name, "--timeout-s", "0", "--json")
    assert (code, parsed(out)[0]["settled_tasks"]) == (1, 0)
    code, out, _ = cli("batch", "abort", name, "--reason", "a test", "--json")
    assert (code, parsed(out)[0]["state"], parsed(out)[0]["reason"]) == (0, "aborted", "a test")
    assert cli("batch", "wait", name)[0] == 1
    code, _, err = cli("batch", "abort", name, "--reason", "again")
    assert code == 4
    assert "is aborted; nothing to abort" in err


def test_unknown_batch_exits_4_with_one_line(cli):
    for action in ("show", "wait"):
        code, out, err = cli("batch", action, "nobody-knows")
        assert (code, out, err.count("\n")) == (4, "", 1)


def test_unknown_run_exits_4_and_names_the_remedy(cli):
    code, _, err = cli("status", "--run", "other")
    assert code == 4
    assert "explorer-mq coordinator --run other" in err


def test_batch_ls_is_a_plain_table_when_piped(cli, rows):
    name = new_id()
    cli("submit", rows, "--batch-id", name, "--wait")
    code, out, _ = cli("batch", "ls")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["BATCH", "TYPE", "STATE"]
    assert [name, "train", "finalized"] in [line.split()[:3] for line in out.splitlines()]
    assert "\x1b" not in out


def test_batch_ls_is_a_drawn_table_on_a_terminal(cli, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = cli("batch", "ls")
    assert code == 0
    assert "batch" in out


def test_worker_ls_and_status_agree_on_the_worker(cli):
    code, out, _ = cli("worker", "ls", "--json")
    (beat,) = parsed(out)
    assert (code, beat["worker"], beat["engine"]) == (0, "only", "synthetic")
    code, out, _ = cli("status", "--json")
    (fields,) = parsed(out)
    assert (code, fields["run"], fields["workers"]) == (0, "cli", 1)
    assert "only" in cli("worker", "ls")[1]
    assert "workers:" in cli("status")[1]
