"""How long a coordinator takes to be ready with 100,000 slices in its journal."""

from __future__ import annotations

import time

import pytest

from tests.coordinator.conftest import start_coordinator  # noqa: F401 - a fixture
from tests.coordinator.test_restart import fill

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("batches", "size"), [(1, 100_000), (100, 1000)])
async def test_restart_takes_less_than_three_seconds(bus, start_coordinator, batches, size):  # noqa: F811
    async with start_coordinator(max_timeout_s=3600) as coordinator:
        await fill(coordinator, bus, batches, size, left_open=500)
        before = coordinator.scheduler.digest()
    started = time.monotonic()
    async with start_coordinator(max_timeout_s=3600) as coordinator:
        seconds = time.monotonic() - started
        assert coordinator.scheduler.digest() == before
        assert seconds < 3, f"{seconds:.2f} s"
