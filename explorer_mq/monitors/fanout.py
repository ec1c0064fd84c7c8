"""All monitors of a process behind one: every row goes to each, and none can hurt the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from explorer_mq.core.metrics import as_number
from explorer_mq.monitors.faults import Faults
from explorer_mq.monitors.jsonl import METRICS, JsonlMonitor
from explorer_mq.monitors.lane import DEFAULT_PATIENCE, DEFAULT_SIZE, Call, Lane
from explorer_mq.monitors.libraries import is_installed, missing
from explorer_mq.monitors.protocol import GROUP, Monitor, MonitorOptions, OpenMonitor
from explorer_mq.monitors.settings import MonitorSettings
from explorer_mq.plugins import load
from explorer_mq_schemas.errors import ConfigError

_CLOSE_S = 10.0


class Monitors:
    """Writes JSON lines itself and hands each row to the other monitors' lanes.

    ``log`` and ``log_table`` return in well under a millisecond and never raise: failures are
    counted and logged once per cause. A row (kind and step) or table (name and step) is taken once;
    the JSON lines keep that promise over restarts, while other tools may show the last step before
    a crash twice. Not for several threads at once.
    """

    def __init__(self, jsonl: JsonlMonitor, lanes: Sequence[Lane] = ()) -> None:
        self.jsonl = jsonl
        self.lanes = tuple(lanes)
        self.faults = Faults("jsonl")
        self._taken: set[tuple[str, str, int]] = set()
        self._is_closed = False

    @classmethod
    def open(
        cls,
        settings: MonitorSettings,
        run: str,
        *,
        size: int = DEFAULT_SIZE,
        patience: int = DEFAULT_PATIENCE,
    ) -> Self:
        """The monitors that ``settings`` name; their libraries are imported at the first row.

        Raises:
            ConfigError: there is no such monitor, or its library is not installed. Nothing else that
                is wrong with a monitor keeps a run from starting.
        """
        opened = [(kind, _opening(kind, settings, run)) for kind in settings.kinds]
        folder = _options("jsonl", settings, run).folder
        return cls(
            JsonlMonitor(settings.dir / folder),
            [Lane(kind, opening, size=size, patience=patience) for kind, opening in opened],
        )

    def log(self, data: Mapping[str, float], step: int, *, kind: str = METRICS) -> None:
        """Record one row: values by name. Rows of the same step need different kinds.

        A value that is not a number is left out; numpy's and torch's scalars are numbers.
        """
        try:
            values = self._numbers(data)
            if values and self._is_new("row", kind, step):
                self._send(
                    partial(self.jsonl.log, values, int(step), kind=kind),
                    lambda monitor: monitor.log(values, int(step)),
                )
        except Exception as error:  # noqa: BLE001 - a metric never stops a run
            self.faults.note(error, "logging")

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Record a table, such as samples of a step."""
        try:
            header, cells = tuple(columns), tuple(tuple(row) for row in rows)
            if self._is_new("table", name, step):
                self._send(
                    partial(self.jsonl.log_table, name, header, cells, int(step)),
                    lambda monitor: monitor.log_table(name, header, cells, int(step)),
                )
        except Exception as error:  # noqa: BLE001 - as above
            self.faults.note(error, "logging a table")

    def close(self, deadline_s: float = _CLOSE_S) -> bool:
        """Write out everything; blocks for ``deadline_s`` at most, so not for an event loop.

        Returns:
            Whether all finished; a monitor that hangs is left behind in its daemon thread.
        """
        if self._is_closed:
            return True
        self._is_closed = True
        until = time.monotonic() + deadline_s
        for lane in self.lanes:
            lane.begin_close()
        try:
            self.jsonl.close()
        except OSError as error:
            self.faults.note(error, "closing")
        self.faults.lose("they could not be written", self.jsonl.waiting + self.jsonl.given_up)
        self.faults.summarize()
        behind = [lane for lane in self.lanes if not lane.join(until)]
        return not behind and not self.jsonl.waiting

    def errors(self) -> dict[str, int]:
        """Failed calls by monitor so far."""
        return {"jsonl": self.faults.errors} | {
            lane.name: lane.faults.errors for lane in self.lanes
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _numbers(self, data: Mapping[str, Any]) -> dict[str, float]:
        values = {}
        for key, value in data.items():
            try:
                values[str(key)] = as_number(key, value)
            except Exception as error:  # noqa: BLE001 - one bad value must not take the others along
                self.faults.lose(f"{key!r} is no number ({type(error).__name__})")
        return values

    def _is_new(self, sort: str, name: str, step: int) -> bool:
        if self._is_closed:
            self.faults.lose("the monitors are closed")
            return False
        row = (sort, name, int(step))
        if row in self._taken:
            self.faults.lose(f"a second {sort} {name!r} of the same step; give it another name")
            return False
        self._taken.add(row)
        return True

    def _send(self, write: Callable[[], None], call: Call) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - the other monitors get the row all the same
            self.faults.note(error, "writing")
        for lane in self.lanes:
            lane.put(call)


def _options(kind: str, settings: MonitorSettings, run: str) -> MonitorOptions:
    return MonitorOptions(
        dir=settings.dir,
        project=settings.project,
        name=settings.name or run,
        options=settings.options.get(kind) or {},
    )


def _opening(kind: str, settings: MonitorSettings, run: str) -> Callable[[], Monitor]:
    found: OpenMonitor = load(kind, GROUP)
    if not callable(found):
        raise ConfigError(f"monitor {kind!r} is {found!r}, which cannot be called")
    needed = getattr(found, "requires", None)
    if isinstance(needed, str) and not is_installed(needed):
        raise missing(needed, extra=kind)
    options = _options(kind, settings, run)
    if not isinstance(options.options, Mapping):
        raise ConfigError(f"options of monitor {kind!r} are a table, not {options.options!r}")
    return partial(found, options)
