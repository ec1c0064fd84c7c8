"""Monitors that record, fail or hang, as the tests tell them."""

from __future__ import annotations

import threading

import pytest


class Recorder:
    """Keeps what it is told; ``failing`` and ``hold`` are switched by the tests."""

    def __init__(self):
        self.rows, self.tables = [], []
        self.failing = None
        self.calls = 0
        self.hold = threading.Event()
        self.hold.set()
        self.entered = threading.Event()
        self.called = threading.Condition()
        self.closed = threading.Event()

    def log(self, data, step):
        self._call(lambda: self.rows.append((step, data)))

    def log_table(self, name, columns, rows, step):
        self._call(lambda: self.tables.append((name, columns, rows, step)))

    def close(self):
        self.closed.set()

    def wait_calls(self, count):
        with self.called:
            assert self.called.wait_for(lambda: self.calls >= count, timeout=10)

    def _call(self, work):
        self.entered.set()
        assert self.hold.wait(30)
        try:
            if self.failing is not None:
                raise self.failing
            work()
        finally:
            with self.called:
                self.calls += 1
                self.called.notify_all()


@pytest.fixture
def recorder():
    """A monitor; released at the end so that no thread stays behind."""
    found = Recorder()
    yield found
    found.hold.set()
