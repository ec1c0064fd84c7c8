"""What the fold keeps of a slice's result and of a task, and what follows from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from explorer_mq.core.grouping import first_runs, slices_per_task
from explorer_mq_schemas.journal import Submitting
from explorer_mq_schemas.results import Result

_MOST_DOUBLINGS = 62
"""More than any pause needs, and still a number."""


class Report(NamedTuple):
    """The accepted result of one slice, without its payload.

    ``seq`` and ``at`` are its sequence and Unix time in the result stream, ``attempt`` the attempts
    its runs have used, ``runs`` how many runs the slice had, ``seconds`` what the last attempt took.
    ``metrics_json`` is one object per completed run, in the order of ``completed``.
    """

    number: int
    seq: int
    at: float
    completed: tuple[int, ...]
    runs: int
    attempt: int
    seconds: float
    experiences: int
    payload_bytes: int
    policy_version_min: int | None
    policy_version_max: int | None
    metrics_json: bytes
    failure: str
    worker: str

    @classmethod
    def of(cls, number: int, seq: int, at: float, result: Result) -> Report:
        """The compact form of ``result``, stored at sequence ``seq`` at time ``at``."""
        return cls(
            number=number,
            seq=seq,
            at=at,
            completed=result.completed,
            runs=len(result.run_ids),
            attempt=result.attempt,
            seconds=result.seconds,
            experiences=result.experiences,
            payload_bytes=result.bytes,
            policy_version_min=result.policy_version_min,
            policy_version_max=result.policy_version_max,
            metrics_json=orjson.dumps(result.metrics),
            failure=result.failure.message if result.failure else "",
            worker=result.worker,
        )

    def run_metrics(self) -> list[dict[str, Any]]:
        """Metrics of each completed run."""
        parsed: list[dict[str, Any]] = orjson.loads(self.metrics_json)
        return parsed

    @property
    def is_success(self) -> bool:
        """Every run of the slice completed."""
        return len(self.completed) == self.runs


@dataclass(frozen=True, slots=True)
class SliceNeed:
    """A slice whose result is awaited: its number, its runs, and the attempts they have used.

    ``failed_at`` is when the slice before it in the chain left these runs missing; None for a slice
    that is the first of its chain.
    """

    number: int
    run_ids: tuple[int, ...]
    attempts_used: int
    failed_at: float | None = None


@dataclass(frozen=True, slots=True)
class TaskWrapper:
    """What is known of one task: the reports of its slices, ordered by sequence, one per number."""

    reports: tuple[Report, ...] = ()

    def merge(self, report: Report) -> TaskWrapper:
        """The task with ``report``: per slice number the lowest sequence is kept."""
        mine = {known.number: known for known in self.reports}
        known = mine.get(report.number)
        if known is not None and known.seq <= report.seq:
            return self
        mine[report.number] = report
        return TaskWrapper(tuple(sorted(mine.values(), key=_seq)))

    def keep(self, seqs: set[int]) -> TaskWrapper:
        """The task with only the reports whose sequence is in ``seqs``."""
        return TaskWrapper(tuple(entry for entry in self.reports if entry.seq in seqs))

    @property
    def finished_sub_task_num(self) -> int:
        """Slices that have reported."""
        return len(self.reports)

    @property
    def completed_runs(self) -> int:
        """Runs of the group that are done."""
        return sum(len(report.completed) for report in self.reports)

    @property
    def experiences(self) -> int:
        """Experiences the completed runs yielded."""
        return sum(report.experiences for report in self.reports)

    @property
    def first_error(self) -> str:
        """The error reported first; empty when there was none."""
        return next((report.failure for report in self.reports if report.failure), "")


def awaited(
    reports: Sequence[Report], repeat_times: int, runs_per_slice: int, max_attempts: int
) -> tuple[SliceNeed, ...]:
    """Slices of a task whose results are still to come; empty exactly when the task is settled.

    Each initial slice starts a chain; a report with missing runs and budget left asks for the next
    slice of its chain, one without budget ends it.
    """
    step = slices_per_task(repeat_times, runs_per_slice)
    by_number = {report.number: report for report in reports}
    needs: list[SliceNeed] = []
    for first in range(step):
        need = SliceNeed(first, first_runs(repeat_times, runs_per_slice, first), 0)
        while (report := by_number.get(need.number)) is not None:
            missing = tuple(run for run in need.run_ids if run not in report.completed)
            if not missing or report.attempt >= max_attempts:
                break
            need = SliceNeed(need.number + step, missing, report.attempt, report.at)
        else:
            needs.append(need)
    return tuple(needs)


def due_at(opening: Submitting, task: int, need: SliceNeed) -> float:
    """When the retry ``need`` of ``task`` may be queued, as Unix time.

    The pause doubles with each attempt and is shortened by up to half, so that many retries do not
    come at once; the share follows from the slice's name, so that every replay finds the same time.
    """
    if need.failed_at is None:
        return opening.at
    doublings = min(max(1, need.attempts_used) - 1, _MOST_DOUBLINGS)
    longest = opening.retry_first_s * 2.0**doublings
    longest = min(opening.retry_longest_s, longest)
    name = f"{opening.batch}/{task}/{need.number}".encode()
    return need.failed_at + longest * (0.5 + zlib.crc32(name) / 2**33)


def _seq(report: Report) -> int:
    return report.seq
