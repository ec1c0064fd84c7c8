"""Named steps of the coordinator's work, so that tests can kill it exactly there.

A step costs a dictionary look-up. ``EXMQ_KILL_AT=deliver.published:3`` ends the process with
SIGKILL when it reaches that step for the third time.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from enum import StrEnum

VARIABLE = "EXMQ_KILL_AT"


class Step(StrEnum):
    """What has just been done."""

    TASKS_STORED = "submit.stored"
    SUBMIT_JOURNALLED = "submit.journalled"
    TASKS_QUEUED = "submit.queued"
    RUNNING_JOURNALLED = "running.journalled"
    RETRY_QUEUED = "retry.queued"
    CLOSE_JOURNALLED = "close.journalled"
    BATCH_PUBLISHED = "deliver.published"
    QUEUE_CLEANED = "deliver.cleaned"
    END_JOURNALLED = "end.journalled"
    SNAPSHOT_STORED = "snapshot.stored"
    SNAPSHOT_JOURNALLED = "snapshot.journalled"
    JOURNAL_TRIMMED = "snapshot.trimmed"


class Steps:
    """Counts the steps of one coordinator and ends the process at the armed one."""

    def __init__(self, armed: str = "") -> None:
        self._step, _, count = armed.partition(":")
        self._count = int(count or 1)
        self._seen: Counter[str] = Counter()

    @classmethod
    def of_environment(cls) -> Steps:
        """Armed by the environment variable, if it is set."""
        return cls(os.environ.get(VARIABLE, ""))

    def reached(self, step: Step) -> None:
        """Call right after ``step`` was done."""
        if step != self._step:
            return
        self._seen[step] += 1
        if self._seen[step] == self._count:
            os.kill(os.getpid(), signal.SIGKILL)
