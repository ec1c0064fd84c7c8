"""The plan of a chaos run: which fault strikes what, and when, drawn from the seed alone.

Faults are dealt like cards: every deck holds each kind in its share, shuffled. So a long run has the
shares exactly, and a short one a fair sample.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class FaultKind(StrEnum):
    """What can happen to a run; kills are ``kill -9``, stops are SIGSTOP and later SIGCONT."""

    KILL_COORDINATOR = "kill_coordinator"
    KILL_WORKER = "kill_worker"
    KILL_SERVER = "kill_server"
    KILL_TRAINER = "kill_trainer"
    KILL_EVERYTHING = "kill_everything"
    KILL_AT_STEP = "kill_at_step"
    STOP_COORDINATOR = "stop_coordinator"
    STOP_WORKER = "stop_worker"
    STOP_SERVER = "stop_server"
    CUT = "cut"
    STALL = "stall"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    DISK_FULL = "disk_full"

    @property
    def is_kill(self) -> bool:
        """The fault ends at least one process with SIGKILL."""
        return self.startswith("kill_")


SHARES: dict[FaultKind, int] = {
    FaultKind.KILL_COORDINATOR: 4,
    FaultKind.KILL_WORKER: 5,
    FaultKind.KILL_SERVER: 3,
    FaultKind.KILL_TRAINER: 2,
    FaultKind.KILL_EVERYTHING: 1,
    FaultKind.KILL_AT_STEP: 5,
    FaultKind.STOP_COORDINATOR: 1,
    FaultKind.STOP_WORKER: 2,
    FaultKind.STOP_SERVER: 1,
    FaultKind.CUT: 1,
    FaultKind.STALL: 1,
    FaultKind.DELAY: 1,
    FaultKind.DUPLICATE: 1,
    FaultKind.DISK_FULL: 1,
}
"""How often each kind is in one deck."""

_LONG_SHARE = 0.4
_LATEST_REPEAT = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: ``after_s`` after the previous one began, lasting ``seconds`` where it lasts.

    ``target`` counts through the candidates (the injector takes it modulo their number). ``step`` is
    where the coordinator kills itself, as in ``EXMQ_KILL_AT``.
    """

    kind: FaultKind
    after_s: float
    target: int
    seconds: float
    step: str = ""


def plan(
    seed: int, *, interval_s: float, lease_s: float, steps: Sequence[str] = ()
) -> Iterator[Fault]:
    """Faults without end, the same for the same arguments.

    Args:
        seed: decides everything.
        interval_s: mean time between two faults; single ones are from 0.1 to 3 times as long.
        lease_s: the leases that stops are measured by: most are shorter, some up to twice as long.
        steps: where a coordinator can be told to kill itself; without any it is killed from outside.
    """
    rng = random.Random(f"faults/{seed}")  # noqa: S311 - reproducible, not secret
    step_names = _bags(rng, list(steps))
    for kind in _bags(rng, [kind for kind, share in SHARES.items() for _ in range(share)]):
        step = ""
        if kind is FaultKind.KILL_AT_STEP:
            if steps:
                step = f"{next(step_names)}:{rng.randint(1, _LATEST_REPEAT)}"
            else:
                kind = FaultKind.KILL_COORDINATOR  # noqa: PLW2901 - the nearest that can be done
        is_long = rng.random() < _LONG_SHARE
        longest = (1.2, 2.0) if is_long else (0.1, 0.9)
        yield Fault(
            kind=kind,
            after_s=min(3.0, max(0.1, rng.expovariate(1.0))) * interval_s,
            target=rng.randrange(1 << 16),
            seconds=rng.uniform(*longest) * lease_s,
            step=step,
        )


def _bags(rng: random.Random, items: list[T]) -> Iterator[T]:
    """All of ``items`` in random order, then all again, without end."""
    for _ in itertools.count():
        if not items:
            return
        yield from rng.sample(items, len(items))
