"""What a monitor is: one row per step goes in, nothing comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

GROUP = "explorer_mq.monitors"
"""Entry-point group of monitors; ``module:attr`` and ``file.py:attr`` name others."""


class Monitor(Protocol):
    """Takes the metrics of a run. Called from one thread, in order; any call may raise or hang."""

    def log(self, data: Mapping[str, float], step: int) -> None:
        """Record one row; steps grow, but a late evaluation may belong to an earlier one."""

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Record a table such as samples of a step; every row has a cell per column."""

    def close(self) -> None:
        """Write out what is buffered and let go of everything; the last call."""


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """What a monitor is opened with.

    ``dir`` is shared by all runs and tools; ``options`` are the user's own for this tool and win
    over what the tool would be opened with.
    """

    dir: Path
    project: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The run's name as the name of one folder, whatever characters are in it."""
        quoted = quote(self.name, safe=" @+=,")
        return quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted


class OpenMonitor(Protocol):
    """What an entry point or ``module:attr`` stands for: a class or function that opens a monitor.

    Called in the monitor's own thread when its first row is there, so importing a library and
    reaching a server belong here. One with an attribute ``requires`` names the module it cannot do
    without; where that is not installed the run does not start.
    """

    def __call__(self, options: MonitorOptions, /) -> Monitor:
        """A monitor that takes rows."""
