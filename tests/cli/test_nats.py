"""``nats``: the server in the foreground."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.cli.conftest import STOP_S, command


@pytest.fixture
def served(tmp_path):
    words = ("nats", "--json", "--server.port", "-1", "--server.store-dir", str(tmp_path))
    child = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    fields = json.loads(child.stdout.readline())
    yield child, fields
    child.kill()
    child.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_nats_stops_its_server_when_told(served, number, code):
    child, fields = served
    alive = os.pidfd_open(fields["pid"])
    child.send_signal(number)
    assert child.wait(STOP_S) == code
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(alive, 0)
    os.close(alive)


def test_nats_exits_3_when_its_server_dies(served):
    child, fields = served
    os.kill(fields["pid"], signal.SIGKILL)
    _, said = child.communicate(timeout=STOP_S)
    assert child.returncode == 3
    assert "nats-server ended by itself; its log is" in said


def test_nats_exits_2_when_the_store_is_in_use(served, capsys):
    from explorer_mq.cli.main import main

    _, fields = served
    flags = ["--server.port", "-1", "--server.store-dir", fields["store_dir"]]
    assert main(["nats", *flags]) == 2
    assert "is in use by run default, pid" in capsys.readouterr().err
