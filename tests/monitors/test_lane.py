"""A lane: slow, failing and hanging monitors stay in their own thread."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from explorer_mq.monitors.lane import Lane
from explorer_mq_schemas.errors import ConfigError


def row(step):
    return lambda monitor: monitor.log({"x": 1.0}, step)


def end(lane, seconds=10.0):
    lane.begin_close()
    return lane.join(time.monotonic() + seconds)


def test_rows_arrive_in_order_and_the_monitor_is_closed(recorder):
    lane = Lane("it", lambda: recorder)
    for step in range(50):
        lane.put(row(step))
    assert end(lane)
    assert [step for step, _ in recorder.rows] == list(range(50))
    assert recorder.closed.is_set()
    assert (lane.faults.errors, lane.faults.lost) == (0, 0)


def test_nothing_is_opened_without_a_row(recorder):
    lane = Lane("it", lambda: pytest.fail("opened"))
    assert end(lane)


def test_a_hanging_monitor_holds_up_nobody(recorder, caplog):
    recorder.hold.clear()
    lane = Lane("it", lambda: recorder, size=3)
    lane.put(row(0))
    assert recorder.entered.wait(10)
    for step in range(1, 1001):
        lane.put(row(step))  # returns, or the test's time runs out
    assert lane.faults.lost == 997
    assert sum("does not keep up" in message for message in caplog.messages) == 1
    assert not end(lane, seconds=0.05)
    assert lane.faults.lost == 1000
    assert "left behind" in caplog.text
    recorder.hold.set()
    assert recorder.closed.wait(10)
    assert [step for step, _ in recorder.rows] == [0]


def test_a_monitor_is_switched_off_after_failures_in_a_row(recorder, caplog):
    recorder.failing = RuntimeError("no")
    lane = Lane("it", lambda: recorder, patience=3)
    for step in range(10):
        lane.put(row(step))
    assert recorder.closed.wait(10)
    lane.put(row(11))
    assert end(lane)
    assert lane.is_off
    assert recorder.calls == 3
    assert (lane.faults.errors, lane.faults.lost) == (3, 8)
    assert sum("switched off" in message for message in caplog.messages) == 1
    assert sum("RuntimeError" in message for message in caplog.messages) == 1


def test_a_success_starts_the_count_again(recorder):
    lane = Lane("it", lambda: recorder, patience=2)
    for step in range(6):
        recorder.failing = None if step % 2 else OSError(28, "full")
        lane.put(row(step))
        recorder.wait_calls(step + 1)
    assert end(lane)
    assert not lane.is_off
    assert lane.faults.errors == 3
    assert [step for step, _ in recorder.rows] == [1, 3, 5]


def test_each_cause_is_logged_once(recorder, caplog):
    lane = Lane("it", lambda: recorder, patience=100)
    for step in range(12):
        recorder.failing = OSError(5 + step % 3, f"at {step}")
        lane.put(row(step))
        recorder.wait_calls(step + 1)
    assert end(lane)
    assert lane.faults.errors == 12
    assert sum("logging failed" in message for message in caplog.messages) == 3
    assert "12 calls failed" in caplog.messages[-1]


def test_opening_is_tried_again_with_the_next_row(recorder):
    attempts = []

    def opening():
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("not yet")
        return recorder

    lane = Lane("it", opening)
    for step in range(4):
        lane.put(row(step))
    assert end(lane)
    assert [step for step, _ in recorder.rows] == [2, 3]


@pytest.mark.parametrize("error", [ConfigError("not installed"), SystemExit(1)])
def test_a_monitor_that_cannot_be_opened_is_switched_off(error, caplog):
    def opening():
        raise error

    lane = Lane("it", opening, patience=2)
    lane.put(row(1))
    lane.put(row(2))
    assert end(lane)
    assert lane.is_off
    assert type(error).__name__ in caplog.text


def test_failures_of_closing_are_counted(recorder, caplog):
    caplog.set_level(logging.WARNING)
    recorder.close = lambda: 1 / 0
    lane = Lane("it", lambda: recorder)
    lane.put(row(1))
    assert end(lane)
    assert lane.faults.errors == 1
    assert "closing failed: ZeroDivisionError" in caplog.text


def test_a_process_ends_although_a_monitor_hangs():
    code = """
import threading
from explorer_mq.monitors.lane import Lane

entered = threading.Event()

def opening():
    entered.set()
    threading.Event().wait()

lane = Lane("hangs", opening)
lane.put(print)
entered.wait()
lane.begin_close()
assert not lane.join(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
