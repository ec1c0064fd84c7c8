"""What importing costs, and that nobody has to import in a certain order."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"datasets", "pyarrow", "reasoning_gym", "pandas", "torch"}


def imported(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "explorer_mq",
        "explorer_mq.settings",
        "explorer_mq.tasksets.settings",
        "explorer_mq.tasksets.scheduler",
    ],
)
def test_no_optional_package_is_imported_before_a_set_needs_it(module):
    found = imported(f"import {module}")
    assert not found & HEAVY
    if not module.endswith("scheduler"):
        assert "numpy" not in found


def test_jsonl_needs_no_optional_package(write_jsonl):
    file = write_jsonl({"prompt": "a"})
    found = imported(
        "from explorer_mq.tasksets.taskset import EvalTaskset\n"
        "from explorer_mq.tasksets.settings import TasksetSettings\n"
        f"EvalTaskset(TasksetSettings(name='a', path={str(file)!r}, workflow='b:c')).tasks()"
    )
    assert not found & HEAVY
