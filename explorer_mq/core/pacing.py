"""When an explorer submits a step, finalizes, evaluates and synchronises weights: one pure function.

:func:`next_action` reads what is submitted and finalized, never what was done before, so an explorer
that died goes on with the action it would have taken.

Fixed, explorer-driven and trainer-driven styles fill a window of ``sync_interval`` steps (the first one
is longer by ``sync_offset``), drain it, then synchronise. Fully asynchronous keeps
``max_inflight_batches`` steps in flight and never waits for weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

SyncStyle = Literal["fixed", "explorer_driven", "trainer_driven", "fully_async"]


class Do(StrEnum):
    """What comes next."""

    SUBMIT = "submit"
    EVALUATE = "evaluate"
    FINALIZE = "finalize"
    FINALIZE_EVALS = "finalize_evals"
    SYNC = "sync"
    END = "end"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do, for ``step``."""

    do: Do
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """The rules. ``eval_interval`` is None without eval sets."""

    style: SyncStyle = "fixed"
    sync_interval: int = 1
    sync_offset: int = 0
    max_inflight_batches: int = 2
    eval_interval: int | None = None
    eval_on_startup: bool = True

    def is_boundary(self, step: int) -> bool:
        """Whether weights are synchronised after ``step``."""
        past = step - self.sync_offset
        return self.style != "fully_async" and past > 0 and past % self.sync_interval == 0

    def is_evaluated(self, step: int) -> bool:
        """Whether the eval sets are run at ``step``; step 0 is the base model."""
        if self.eval_interval is None:
            return False
        return self.eval_on_startup if step == 0 else step % self.eval_interval == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has happened: steps count from 1, everything up to the number is done.

    ``evaluated`` is the last step whose evals were submitted (-1: none), ``evals_open`` the steps
    whose evals are not finalized. ``synced`` is the last step after which weights were synchronised.
    ``exhausted``: there are no more tasks.
    """

    submitted: int = 0
    finalized: int = 0
    synced: int = 0
    evaluated: int = -1
    evals_open: tuple[int, ...] = ()
    exhausted: bool = False


def next_action(pacing: Pacing, done: Progress) -> Action:
    """What to do next.

    Each step's evals are finalized right after the step, so that rows come out in order.
    """
    at = done.submitted
    if pacing.is_evaluated(at) and done.evaluated < at:
        return Action(Do.EVALUATE, at)
    due = [step for step in done.evals_open if step <= done.finalized]
    if due and (at > 0 or pacing.style == "fully_async"):
        return Action(Do.FINALIZE_EVALS, due[0])
    in_flight = at - done.finalized
    drain = done.exhausted or pacing.is_boundary(at)
    if pacing.style == "fully_async" and in_flight >= pacing.max_inflight_batches:
        drain = True
    if in_flight and drain:
        return Action(Do.FINALIZE, done.finalized + 1)
    if pacing.is_boundary(at) and done.synced < at:
        return Action(Do.SYNC, at)
    if done.exhausted:
        return Action(Do.FINALIZE_EVALS, due[0]) if due else Action(Do.END, at)
    return Action(Do.SUBMIT, at + 1)
