"""The command tree: help, exit codes, one line per error."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from explorer_mq.cli import arguments, tree
from explorer_mq.cli.main import main
from explorer_mq_schemas.errors import ConfigError

HEAVY = ("nats", "torch", "vllm", "pandas", "datasets", "matplotlib", "rich", "pydantic")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in tree.COMMANDS)


def test_help_is_quick_and_imports_nothing_heavy():
    program = (
        "import sys; from explorer_mq.cli.main import main; main(['--help']); "
        f"sys.exit(','.join(set({HEAVY!r}) & set(sys.modules)))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
    assert time.perf_counter() - started < 0.8


@pytest.mark.parametrize("name", sorted(tree.COMMANDS))
def test_help_of_a_command_is_short_and_names_its_sections(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "settings read: run" in text
    assert len(text.splitlines()) < 40


def test_every_reading_command_has_json(capsys):
    reading = [n for n in tree.COMMANDS if n.split()[-1] in ("ls", "show", "wait", "status")]
    for name in [*reading, "submit", "doctor", "config check"]:
        main([*name.split(), "--help"])
        assert "--json" in capsys.readouterr().out, name


def test_no_command_prints_help_and_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "batch ls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("statsu", "unknown command 'statsu'; did you mean 'status'?"),
        ("batch shwo x", "unknown command 'batch shwo'; did you mean 'batch show'?"),
        (
            "batch",
            "batch needs a command: batch ls, batch show, batch wait, batch finalize, batch abort",
        ),
        ("worker --slots 3", "unknown option --slots; did you mean --worker.slots?"),
        ("worker @", "@ needs a file after it"),
        ("worker --worker.slots", "--worker.slots needs a value after it"),
        ("batch show", "the following arguments are required: batch; see `explorer-mq batch show"),
        ("batch abort 7", "the following arguments are required: --reason"),
        ("batch wait 7 --timeout-s -1", "must be 0 or more seconds"),
        ("config check --worker.slotz 3", "did you mean --worker.slots?"),
        ("config check @ /nowhere.toml", "settings file /nowhere.toml does not exist"),
        ("config show wroker", "no settings section 'wroker'; did you mean worker?"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(line, message, capsys):
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("explorer-mq: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_debug_adds_the_traceback(capsys):
    assert main(["statsu", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_unreachable_server_exits_3_with_one_line(capsys):
    flags = ["--nats.url", "nats://127.0.0.1:9", "--nats.connect-timeout-s", "0.3"]
    assert main(["status", *flags]) == 3
    said = capsys.readouterr().err
    assert "no NATS server answers at nats://127.0.0.1:9" in said
    assert said.count("\n") == 1


def test_missing_credentials_file_exits_2(capsys):
    assert main(["status", "--nats.credentials-file", "/nowhere.creds"]) == 2
    assert "/nowhere.creds does not exist" in capsys.readouterr().err


def test_interrupt_exits_130(monkeypatch):
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("explorer_mq.cli.main.run", interrupted)
    assert main(["status"]) == 130


def test_split_takes_settings_out_of_anywhere():
    line = [
        "@",
        "a.toml",
        "batch",
        "--run",
        "r",
        "show",
        "--worker.slots=3",
        "7",
        "@b.toml",
        "--json",
        "--nats.url",
        "x",
    ]
    parts = arguments.split(line)
    assert parts.words == ("batch", "show", "7", "--json")
    assert parts.files == (Path("a.toml"), Path("b.toml"))
    assert parts.flags == (("run", "r"), ("worker.slots", "3"), ("nats.url", "x"))


def test_split_takes_negative_numbers_as_values():
    assert arguments.split(["--server.port", "-1"]).flags == (("server.port", "-1"),)


def test_split_leaves_everything_after_two_dashes():
    assert arguments.split(["a", "--", "@", "--x.y"]).words == ("a", "--", "@", "--x.y")


def test_split_refuses_a_flag_in_place_of_a_value():
    with pytest.raises(ConfigError, match=r"--worker\.slots needs a value"):
        arguments.split(["--worker.slots", "--json"])
