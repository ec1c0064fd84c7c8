"""Processes end with their owner, however far down they are; plain processes, no engine."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

_BOUND = """
import sys
from explorer_mq_workers.engines.lifeline import bind_to_owner
bind_to_owner()
bind_to_owner()
print("bound", flush=True)
sys.stdin.read()
"""

_OWNER = """
import os, subprocess, sys
os.environ["EXMQ_ENGINE_OWNER"] = str(os.getpid())
program = [sys.executable, "-c", sys.argv[1]]
if sys.argv[2] == "grandchild":
    between = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    program = [sys.executable, "-c", between, *program]
subprocess.run(program)
"""


@pytest.mark.parametrize("depth", ["child", "grandchild"])
def test_process_ends_when_its_owner_is_killed(depth):
    command = [sys.executable, "-c", _OWNER, _BOUND, depth]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "bound\n"
        below = psutil.Process(owner.pid).children(recursive=True)
        assert len(below) == (1 if depth == "child" else 2)
        owner.kill()
        owner.wait()
        _, alive = psutil.wait_procs(below, timeout=5)
        assert not alive


def test_process_without_an_owner_is_left_alone():
    program = [sys.executable, "-c", _BOUND]
    done = subprocess.run(program, input="", capture_output=True, text=True, check=True)
    assert done.stdout == "bound\n"
