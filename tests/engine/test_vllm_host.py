"""Engines in processes of their own: killed hosts, signals, broken installations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

_HOST = """
import asyncio, signal, sys
from explorer_mq.running import run_until_signal
from explorer_mq.settings import VllmSettings
from explorer_mq_schemas.errors import ConfigError
from explorer_mq_workers.engines.vllm import VllmEngine

async def main(stop):
    settings = VllmSettings(model=sys.argv[1], dtype="float32", max_model_len=128)
    engine = VllmEngine(settings)
    await engine.start()
    await engine.close()
    print("closed", stop.is_set(), flush=True)
    engine = VllmEngine(settings)
    await engine.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

try:
    run_until_signal(main)
except ConfigError as error:
    print(error, flush=True)
"""


def host(model_dir: Path, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    script = tmp_path / "host.py"
    script.write_text(_HOST)
    return subprocess.Popen(
        [sys.executable, str(script), str(model_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**psutil.Process().environ(), **environment},
    )


def said(process: subprocess.Popen[str], word: str) -> str:
    """The next line that starts with ``word``; vLLM's log goes the same way."""
    return next((line for line in process.stdout if line.startswith(word)), "")


def test_core_does_not_outlive_a_killed_host_nor_signal_a_living_one(model_dir, tmp_path):
    with host(model_dir, tmp_path) as process:
        assert said(process, "closed") == "closed False\n"
        assert said(process, "ready")
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        for child in children:
            child.send_signal(signal.SIGINT)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive


def test_torchvision_of_another_torch_is_named_with_the_remedy(model_dir, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    metadata = tmp_path / "torchvision-0.28.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with host(model_dir, tmp_path, PYTHONPATH=path.rstrip(os.pathsep)) as process:
        message = said(process, "worker.engine: vLLM cannot be imported")
    assert "pip uninstall -y torchvision torchaudio torchcodec" in message
