"""How long an attempt may take, from how long successful ones took.

The mean is over the newest batches only, apart for train and eval, and apart for each number of
runs in a slice: a retry of one missing run is not judged by the time a whole group takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from explorer_mq_schemas.tasks import BatchType
from explorer_mq_schemas.timeouts import AttemptTimeouts

Durations = Mapping[int, tuple[int, float]]
"""Number of successful attempts and their seconds in all, by number of runs."""


@dataclass(frozen=True, slots=True)
class TimeoutHistory:
    """Durations of the newest batches of each kind, oldest first.

    ``steps`` counts train batches that were observed to their end.
    """

    window: int
    steps: int = 0
    train: tuple[Durations, ...] = ()
    eval: tuple[Durations, ...] = ()

    def add(self, batch_type: BatchType, durations: Durations, *, complete: bool) -> TimeoutHistory:
        """The history with one more batch; ``complete``: no task of it was cut off."""
        if batch_type == "eval":
            return replace(self, eval=(*self.eval, durations)[-self.window :])
        return replace(
            self,
            steps=self.steps + complete,
            train=(*self.train, durations)[-self.window :],
        )

    def means(self, batch_type: BatchType) -> dict[int, float]:
        """Mean seconds of a successful attempt, by number of runs."""
        batches = self.eval if batch_type == "eval" else self.train
        totals: dict[int, tuple[int, float]] = {}
        for durations in batches:
            for runs, (count, seconds) in durations.items():
                known = totals.get(runs, (0, 0.0))
                totals[runs] = (known[0] + count, known[1] + seconds)
        return {runs: seconds / count for runs, (count, seconds) in sorted(totals.items()) if count}

    def timeouts(self, *, ratio: float, warmup_min_steps: int) -> AttemptTimeouts:
        """What workers should apply; empty until the warm-up is over."""
        if self.steps < warmup_min_steps:
            return AttemptTimeouts(ratio=ratio)
        return AttemptTimeouts(ratio=ratio, train=self.means("train"), eval=self.means("eval"))


def durations_of(attempts: Iterable[tuple[int, float]]) -> dict[int, tuple[int, float]]:
    """Durations from the number of runs and the seconds of each successful attempt."""
    found: dict[int, tuple[int, float]] = {}
    for runs, seconds in attempts:
        count, total = found.get(runs, (0, 0.0))
        found[runs] = (count + 1, total + seconds)
    return found


def attempt_timeout_s(
    timeouts: AttemptTimeouts | None, *, is_eval: bool, runs: int, limit_s: float
) -> float:
    """Seconds an attempt with ``runs`` runs may take: ``min(limit_s, ratio * mean)``.

    A number of runs that was never seen borrows the mean of the next larger one, since fewer runs
    never take longer; beyond the largest it grows in proportion, as if they ran one by one.
    """
    means = {} if timeouts is None else timeouts.eval if is_eval else timeouts.train
    if timeouts is None or not means:
        return limit_s
    larger = [known for known in means if known >= runs]
    if larger:
        mean_s = means[min(larger)]
    else:
        largest = max(means)
        mean_s = means[largest] * runs / largest
    return min(limit_s, timeouts.ratio * mean_s)
