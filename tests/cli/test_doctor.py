"""``doctor``: verdicts, remedies and the exit code."""

from __future__ import annotations

import json

import pytest

from explorer_mq.cli.checks import engine, host, server

GIB = 1 << 30


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (host.python_version((3, 10, 9)), "fail"),
        (host.python_version((3, 11, 0)), "ok"),
        (host.python_version((3, 14, 0)), "fail"),
        (host.open_files(256), "fail"),
        (host.open_files(1024), "warn"),
        (host.open_files(65536), "ok"),
        (host.server_version("nats", "nats-server: v2.11.9"), "fail"),
        (host.server_version("nats", "nats-server: v2.12.0"), "ok"),
        (host.server_version("nats", "garbage"), "fail"),
        (server.store({"storage": 95, "limits": {"max_storage": 100}}), "warn"),
        (server.store({"storage": 95, "limits": {"max_storage": -1}}), "ok"),
        (server.clock(0.1), "ok"),
        (server.clock(-3.0), "warn"),
        (server.clock(None), "ok"),
    ],
)
def test_check_gives_a_remedy_unless_it_is_ok(check, verdict):
    assert check.verdict == verdict
    assert check.remedy or verdict == "ok"


@pytest.mark.parametrize(
    ("free_bytes", "verdict"), [(GIB // 2, "fail"), (5 * GIB, "warn"), (50 * GIB, "ok")]
)
def test_disk_space_is_judged_where_the_store_will_be(tmp_path, free_bytes, verdict):
    check = host.disk_space(tmp_path / "not" / "there", free_bytes)
    assert check.verdict == verdict
    assert check.found.endswith(str(tmp_path))


def test_engine_check_names_the_torchvision_clash_and_its_fix():
    traceback = (
        'File "/x/site-packages/torchvision/_meta_registrations.py", line 163\n'
        "RuntimeError: operator torchvision::nms does not exist\n"
    )
    check = engine.diagnose("vllm", traceback, "")
    assert check.verdict == "fail"
    assert "torchvision does not fit" in check.found
    assert check.remedy == "pip uninstall -y torchvision torchaudio torchcodec"


def test_engine_check_quotes_the_last_line_of_an_unknown_failure():
    check = engine.diagnose(
        "torch", "Traceback\nOSError: libx.so: cannot open", "pip install torch"
    )
    assert check.found == "import fails: OSError: libx.so: cannot open"
    assert "pip install torch" in check.remedy


def test_doctor_finds_the_server_and_exits_0(cli):
    code, out, _ = cli("doctor", "--only", "nats", "--only", "host", "--json")
    checks = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert checks["nats"]["verdict"] == "ok"
    assert {"payload", "jetstream", "clock", "python", "nats-server"} <= set(checks)
    assert code == 0


def test_doctor_fails_with_a_remedy_when_no_server_answers(cli):
    flags = ("--nats.url", "nats://127.0.0.1:9", "--nats.connect-timeout-s", "0.3")
    code, out, _ = cli("doctor", "--only", "nats", *flags)
    assert code == 1
    assert "-> start `explorer-mq nats`, or set nats.url" in out
