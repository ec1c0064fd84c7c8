"""A whole run in real processes: server, coordinator and a worker with the synthetic engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from explorer_mq.cli.main import main

STOP_S = 15


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "explorer_mq", *words]


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is ended at the end, by force only if it must be."""
    child = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def wait_for(child: subprocess.Popen[str], text: str) -> None:
    """Read the log of ``child`` until a line holds ``text``."""
    assert child.stderr is not None
    seen = []
    for line in child.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} was never logged: {''.join(seen)}")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("cli-store")
    words = ("nats", "--json", "--server.port", "-1", "--server.store-dir", str(store))
    with process(*words, "--run", "cli") as child:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())["url"]


@pytest.fixture(scope="session")
def live_run(server_url: str) -> Iterator[str]:
    """Name of a run with a coordinator and one worker."""
    where = ("--nats.url", server_url, "--run", "cli")
    with process("coordinator", *where) as coordinator:
        wait_for(coordinator, "ready")
        with process(
            "worker", *where, "--worker.engine.type", "synthetic", "--worker.id", "only"
        ) as worker:
            wait_for(worker, "ready")
            yield "cli"


@pytest.fixture
def cli(
    server_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line; returns exit code, standard output, standard error."""
    monkeypatch.setenv("EXPLORER_MQ_NATS__URL", server_url)
    monkeypatch.setenv("EXPLORER_MQ_RUN", "cli")

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
