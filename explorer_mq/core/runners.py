"""What runs where, and the table that shows it. A runner is one slot of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from explorer_mq_schemas.beats import WorkerBeat


@dataclass(frozen=True, slots=True)
class RunningTaskState:
    """A slice that is being run: which, where, since when (Unix seconds of the worker's clock).

    ``progress_at`` is when it last sampled a token, called the model or noted a state.
    """

    batch_id: str
    task_id: int
    slice_number: int
    runner_id: str
    attempt: int
    started_at: float
    progress_at: float
    calls: int
    tokens: int
    state: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The row of the state table: what the workflow noted, and how the slice stands."""
        return {
            "workflow_id": f"{self.batch_id}/{self.task_id}/{self.slice_number}",
            "begin_time": self.started_at,
            "attempt": self.attempt,
            "calls": self.calls,
            "tokens": self.tokens,
            **self.state,
        }


def runner_states(beat: WorkerBeat) -> list[RunningTaskState]:
    """What the slots of one worker are busy with."""
    return [
        RunningTaskState(
            batch_id=one.batch,
            task_id=one.task,
            slice_number=one.slice,
            runner_id=f"{beat.worker}/{one.slot}",
            attempt=one.attempt,
            started_at=one.started_at,
            progress_at=one.progress_at or one.started_at,
            calls=one.calls,
            tokens=one.tokens,
            state={"model_version": beat.policy_version, **one.state},
        )
        for one in beat.running
    ]


def state_table(states: Mapping[str, Mapping[str, Any]], now: float) -> str:
    """An aligned table of ``states`` by runner id: the union of their keys, ``-`` where one lacks it.

    ``running_time`` is the seconds since ``begin_time``.
    """
    rows = {
        runner: {
            **fields,
            **(
                {"running_time": f"{now - fields['begin_time']:.1f}"}
                if "begin_time" in fields
                else {}
            ),
        }
        for runner, fields in states.items()
    }
    keys = sorted({key for fields in rows.values() for key in fields})
    cells = [["runner_id", *keys]]
    cells += [
        [runner, *(str(fields[key]) if key in fields else "-" for key in keys)]
        for runner, fields in sorted(rows.items())
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
