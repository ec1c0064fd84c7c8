"""Real processes of a run, started as a user would."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

from explorer_mq_schemas.tasks import Task

SYNTHETIC = ["--worker.engine.type", "synthetic", "--worker.slots", "4"]


class Processes:
    """Children of the test, each with its own log."""

    def __init__(self, run, url, log_dir):
        self.common = ["--run", run, "--nats.url", url, "--scheduler.lease_s", "2"]
        self.common += ["--worker.beat_interval_s", "0.2"]
        self.log_dir = log_dir
        self.children = {}

    def start(self, name, *arguments, environ=None):
        with (self.log_dir / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "explorer_mq", *arguments, *self.common]
            self.children[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **(environ or {})}
            )

    def worker(self, name, latency_s=0.05):
        latency = ["--worker.engine.latency_s", str(latency_s)]
        self.start(name, "worker", "--worker.id", name, *SYNTHETIC, *latency)

    def kill(self, name, number=signal.SIGKILL):
        child = self.children.pop(name)
        child.send_signal(number)
        return child.wait(20)

    def wait(self, name, seconds=30):
        """Exit code of a child that ends by itself."""
        return self.children.pop(name).wait(seconds)

    def log(self, name):
        return (self.log_dir / f"{name}.log").read_text()

    async def logged(self, name, words, seconds=20):
        """Wait until the child's log holds ``words``; the file system wakes nobody, so look again."""
        end = time.monotonic() + seconds
        while words not in self.log(name):
            assert time.monotonic() < end, self.log(name)
            await asyncio.sleep(0.02)

    def stop(self):
        for name in list(self.children):
            self.kill(name)


def tasks(count, repeat=4):
    row = {"prompt": "p", "answer": "a"}
    return [Task(raw_task=row, reward_fn="exact_match", repeat_times=repeat) for _ in range(count)]
