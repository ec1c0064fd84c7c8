"""All durable state as one JSON document: what a restart reads in place of the whole journal.

Two states that decide alike have the same document, so its digest tells whether a replay has
rebuilt what was there. What only a running process knows (who waits, what is queued) is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from explorer_mq.core.batch import retries_of
from explorer_mq.core.grouping import shape_of, slices_per_task
from explorer_mq.core.ranges import Ranges, contains, to_ranges, union
from explorer_mq.core.records import Report, TaskWrapper, awaited
from explorer_mq.core.state import BatchState, Retry
from explorer_mq.core.table import Table
from explorer_mq.core.timeouts import Durations, TimeoutHistory
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.journal import (
    Aborted,
    Finalized,
    Finalizing,
    Submitting,
    decode_entry,
)
from explorer_mq_schemas.messages import Message

FORMAT = "exmq.snapshot.1"


@dataclass(frozen=True, slots=True)
class UsedIds:
    """Ids of batches that are too old to be remembered otherwise; a batch id is used once."""

    numbers: Ranges = ()
    names: frozenset[str] = frozenset()

    def add(self, names: Iterable[str]) -> UsedIds:
        """The set with ``names``, ids as text."""
        numbers = [int(name) for name in names if _is_number(name)]
        texts = [name for name in names if not _is_number(name)]
        return UsedIds(union(self.numbers, to_ranges(numbers)), self.names | frozenset(texts))

    def __contains__(self, name: str) -> bool:
        if _is_number(name):
            return contains(self.numbers, int(name))
        return name in self.names


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Every open batch and the newest closed ones by id text, older ids, and how long attempts took."""

    batches: Mapping[str, BatchState] = field(default_factory=dict)
    used: UsedIds = field(default_factory=UsedIds)
    history: TimeoutHistory = field(default_factory=lambda: TimeoutHistory(window=20))


def dump(snapshot: RunSnapshot) -> bytes:
    """The document; equal states give equal bytes."""
    history = snapshot.history
    return orjson.dumps(
        {
            "format": FORMAT,
            "batches": [_dump_batch(state) for state in snapshot.batches.values()],
            "used": {"numbers": snapshot.used.numbers, "names": sorted(snapshot.used.names)},
            "history": {
                "steps": history.steps,
                "train": [_dump_durations(one) for one in history.train],
                "eval": [_dump_durations(one) for one in history.eval],
            },
        }
    )


def digest(snapshot: RunSnapshot) -> str:
    """sha256 of the document, in hexadecimal.

    Without the counts of late results: a replay cannot see results that were removed.
    """
    uncounted = {name: replace(state, late_total=0) for name, state in snapshot.batches.items()}
    return hashlib.sha256(dump(replace(snapshot, batches=uncounted))).hexdigest()


def load(data: bytes | bytearray, *, window: int) -> RunSnapshot:
    """The snapshot that ``data`` holds; ``window`` batches of durations are kept.

    Raises:
        ContractError: it holds none; nothing is guessed from the rest.
    """
    try:
        fields = orjson.loads(data)
        if fields["format"] != FORMAT:
            raise ContractError(f"snapshot of format {fields['format']!r}, expected {FORMAT!r}")
        states = [_load_batch(one) for one in fields["batches"]]
        used, history = fields["used"], fields["history"]
        return RunSnapshot(
            batches={str(state.batch): state for state in states},
            used=UsedIds(
                tuple((low, high) for low, high in used["numbers"]), frozenset(used["names"])
            ),
            history=TimeoutHistory(
                window=window,
                steps=history["steps"],
                train=tuple(_load_durations(one) for one in history["train"])[-window:],
                eval=tuple(_load_durations(one) for one in history["eval"])[-window:],
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(f"snapshot: malformed ({type(error).__name__}: {error})") from error


def _dump_batch(state: BatchState) -> dict[str, Any]:
    return {
        "opening": _fields(state.opening),
        "phase": state.phase,
        "closing": None if state.closing is None else _fields(state.closing),
        "outcome": None if state.outcome is None else _fields(state.outcome),
        "enough_at": state.enough_at,
        "late": sorted(state.late),
        "late_total": state.late_total,
        "tasks": [
            [task, [_dump_report(report) for report in record.reports]]
            for task, record in state.tasks.items()
        ],
    }


def _dump_report(report: Report) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in report]


def _load_batch(fields: Mapping[str, Any]) -> BatchState:
    opening, closing, outcome = (
        None if fields[name] is None else decode_entry(orjson.dumps(fields[name]))
        for name in ("opening", "closing", "outcome")
    )
    if not isinstance(opening, Submitting):
        raise ContractError("snapshot: a batch without its opening entry")
    if not isinstance(closing, Finalizing | None) or not isinstance(
        outcome, Finalized | Aborted | None
    ):
        raise ContractError(f"snapshot: batch {opening.batch!r} has entries of the wrong kind")
    records = {
        task: TaskWrapper(tuple(_load_report(row) for row in rows))
        for task, rows in fields["tasks"]
    }
    size = 0 if outcome is not None else sum(group.count for group in opening.groups)
    state = BatchState(
        opening=opening,
        tasks=Table.of(size, records),
        phase=Phase(fields["phase"]),
        completed_runs=sum(record.completed_runs for record in records.values()),
        experiences=sum(record.experiences for record in records.values()),
        enough_at=fields["enough_at"],
        closing=closing,
        outcome=outcome,
        late=frozenset(fields["late"]),
        late_total=fields["late_total"],
    )
    if outcome is not None:
        return replace(
            state,
            settled=outcome.finished_task_count,
            completed_runs=outcome.completed_runs,
            experiences=outcome.experiences,
        )
    return _derive(state, records)


def _derive(state: BatchState, records: Mapping[int, TaskWrapper]) -> BatchState:
    """Fill in what follows from the reports."""
    opening = state.opening
    settled, retries = 0, set[Retry]()
    for task, record in records.items():
        repeat, per_slice = shape_of(opening.groups, task)
        needs = awaited(record.reports, repeat, per_slice, opening.max_attempts)
        settled += not needs
        initial = slices_per_task(repeat, per_slice)
        if state.closing is None:
            retries |= retries_of(opening, task, needs, initial)
    return replace(state, settled=settled, retries=frozenset(retries))


def _load_report(row: list[Any]) -> Report:
    report = Report(*row)
    return report._replace(
        completed=tuple(report.completed), metrics_json=str(report.metrics_json).encode()
    )


def _fields(entry: Message) -> Any:
    return orjson.loads(entry.encode())


def _dump_durations(durations: Durations) -> list[list[float]]:
    return [[runs, count, seconds] for runs, (count, seconds) in sorted(durations.items())]


def _load_durations(rows: list[list[Any]]) -> Durations:
    return {int(runs): (int(count), float(seconds)) for runs, count, seconds in rows}


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and (name == "0" or name[0] != "0")
