"""What the fold keeps of a slice's result and of a task, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from explorer_mq.core.grouping import first_runs, slices_per_task
from explorer_mq_schemas.results import Result


@dataclass(frozen=True, slots=True)
class Report:
    """The accepted result of one slice, without its payload.

    ``seq`` is its sequence in the result stream, ``attempt`` the attempts its runs have used.
    ``metrics_json`` is one object per completed run, in the order of ``completed``.
    """

    number: int
    seq: int
    completed: tuple[int, ...]
    attempt: int
    experiences: int
    payload_bytes: int
    policy_version_min: int | None
    policy_version_max: int | None
    metrics_json: bytes
    failure: str
    worker: str

    @classmethod
    def of(cls, number: int, seq: int, result: Result) -> Report:
        """The compact form of ``result``, stored at sequence ``seq``."""
        return cls(
            number=number,
            seq=seq,
            completed=result.completed,
            attempt=result.attempt,
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


@dataclass(frozen=True, slots=True)
class SliceNeed:
    """A slice whose result is awaited: its number, its runs, and the attempts they have used."""

    number: int
    run_ids: tuple[int, ...]
    attempts_used: int


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """Reports of one task, ordered by sequence; at most one per slice number."""

    reports: tuple[Report, ...] = ()

    def merge(self, report: Report) -> TaskRecord:
        """The record with ``report``: per slice number the lowest sequence is kept."""
        mine = {known.number: known for known in self.reports}
        known = mine.get(report.number)
        if known is not None and known.seq <= report.seq:
            return self
        mine[report.number] = report
        return TaskRecord(tuple(sorted(mine.values(), key=lambda entry: entry.seq)))

    def keep(self, seqs: set[int]) -> TaskRecord:
        """The record with only the reports whose sequence is in ``seqs``."""
        return TaskRecord(tuple(entry for entry in self.reports if entry.seq in seqs))

    @property
    def completed_runs(self) -> int:
        """Runs of the group that are done."""
        return sum(len(report.completed) for report in self.reports)

    @property
    def experiences(self) -> int:
        """Experiences the completed runs yielded."""
        return sum(report.experiences for report in self.reports)


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
            need = SliceNeed(need.number + step, missing, report.attempt)
        else:
            needs.append(need)
    return tuple(needs)
