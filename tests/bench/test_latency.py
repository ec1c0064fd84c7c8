"""One task from submit to finalized: coordinator, worker and caller in one process, no latency."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.coordinator.conftest import start_coordinator, start_worker  # noqa: F401 - fixtures
from tests.coordinator.test_coordinator import tasks

pytestmark = pytest.mark.bench


async def test_one_task_takes_milliseconds(bus, start_coordinator, start_worker):  # noqa: F811
    seconds = []
    async with start_coordinator() as coordinator, start_worker():
        for batch in range(220):
            started = time.perf_counter()
            await coordinator.submit_batch(batch_id=batch, tasks=tasks(1, repeat=1))
            await coordinator.finalize_train_batch(batch, timeout=10)
            seconds.append(time.perf_counter() - started)
    warm = sorted(seconds[20:])
    p50, p99 = statistics.median(warm), warm[int(len(warm) * 0.99)]
    assert p50 < 0.010, f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
