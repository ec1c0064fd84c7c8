"""SwanLab, offline unless told otherwise."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from explorer_mq.monitors.libraries import library
from explorer_mq.monitors.protocol import MonitorOptions
from explorer_mq.monitors.tables import as_markdown

# It would ask for a login on the terminal and replace the process's standard streams.
_QUIET = {"interactive": False, "terminal": {"proxy_type": "none"}}


class SwanlabMonitor:
    """One SwanLab run per process; files in ``<dir>/swanlab``, sent later with ``swanlab sync``.

    Options go to ``swanlab.init``: ``{mode: online, id: ..., resume: allow}`` sends at once and
    continues a run, which SwanLab cannot do offline.
    """

    requires: ClassVar[str] = "swanlab"

    def __init__(self, options: MonitorOptions) -> None:
        self._swanlab = library("swanlab", extra="swanlab")
        _talk_to_stderr()
        folder = options.dir / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        opening: dict[str, Any] = {
            "project": options.project,
            "name": options.name,
            "log_dir": str(folder),
            "mode": "offline",
            "settings": _QUIET,
        }
        self._run = self._swanlab.init(**opening | dict(options.options))

    def log(self, data: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log(dict(data), step=step)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """A Markdown table as text."""
        self._run.log({name: self._swanlab.Text(as_markdown(columns, rows))}, step=step)

    def close(self) -> None:
        """Finish the run; online this sends what is left."""
        self._run.finish()


def _talk_to_stderr() -> None:
    """Move its greetings: standard output belongs to commands, whose lines programs read."""
    console = getattr(sys.modules.get("swanlab.sdk.internal.pkg.console"), "c", None)
    if console is not None and hasattr(console, "file"):
        console.file = sys.stderr
