"""The figures of a chaos run and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_SHOWN = 40


@dataclass(slots=True, kw_only=True)
class Report:
    """What was done and what was found.

    ``kills`` counts faults with SIGKILL (everything at once is one), ``slices`` accepted results,
    ``batches`` those that were closed, ``lost`` missing runs, batches and results, ``duplicates`` runs
    and acknowledged batches that came again, ``stalls`` batches not closed in time. ``exits`` are ends
    of processes that faults explain, by reason. ``findings`` has the evidence, ``refusals`` why calls
    had to be repeated.
    """

    kills: int = 0
    slices: int = 0
    batches: int = 0
    lost: int = 0
    duplicates: int = 0
    stalls: int = 0
    recovered_p50_s: float = 0.0
    recovered_max_s: float = 0.0
    inconsistent: int = 0
    replay_differences: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    by_step: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    unexpected_exits: list[dict[str, Any]] = field(default_factory=list)
    redeliveries: int = 0
    repeated_messages: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seed: int = 0
    standby: bool = False

    @property
    def is_good(self) -> bool:
        """Nothing was lost, doubled, mixed up or stuck, and nothing died without cause."""
        return not (
            self.lost
            or self.duplicates
            or self.stalls
            or self.inconsistent
            or self.replay_differences
            or self.unexpected_exits
        )

    def fields(self) -> dict[str, Any]:
        """For JSON; long lists are cut."""
        return {**asdict(self), "findings": self.findings[:_SHOWN]}
