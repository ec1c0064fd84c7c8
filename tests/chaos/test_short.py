"""A short run of the real thing: every process is real, and so is every kill."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]


def chaos(*options):
    command = [sys.executable, "-m", "explorer_mq", "chaos", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140, check=False)
    assert done.stdout, done.stderr
    return done, json.loads(done.stdout.splitlines()[-1])


def test_twenty_seconds_of_chaos_lose_nothing_and_double_nothing():
    done, report = chaos("--seconds", "20", "--seed", "1", "--kills", "1")
    harm = {name: report[name] for name in ("lost", "duplicates", "stalls", "inconsistent")}
    assert harm == dict.fromkeys(harm, 0), (report, done.stderr[-4000:])
    assert report["unexpected_exits"] == [], done.stderr[-4000:]
    assert report["replay_differences"] == 0, report["findings"]
    assert report["kills"] > 0
    assert report["slices"] > report["batches"] > 0
    assert done.returncode == 0
