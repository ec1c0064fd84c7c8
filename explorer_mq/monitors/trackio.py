"""Trackio, in a local database unless told otherwise."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from explorer_mq.monitors.libraries import library
from explorer_mq.monitors.protocol import MonitorOptions


class TrackioMonitor:
    """One trackio run per name, continued when the run is resumed; database in ``<dir>/trackio``.

    A ``TRACKIO_DIR`` in the environment wins over that directory. Options go to ``trackio.init``:
    ``space_id`` or ``server_url`` send rows elsewhere. Tables need pandas and are cut by trackio.
    """

    requires: ClassVar[str] = "trackio"

    def __init__(self, options: MonitorOptions) -> None:
        # Trackio reads it once, while it is imported.
        os.environ.setdefault("TRACKIO_DIR", str((options.dir / "trackio").absolute()))
        self._trackio = library("trackio", extra="trackio")
        _talk_to_stderr(self._trackio)
        opening: dict[str, Any] = {
            "project": options.project,
            "name": options.name,
            "resume": "allow",
            "embed": False,
            "auto_log_cpu": False,
            "auto_log_gpu": False,
        }
        self._run = self._trackio.init(**opening | dict(options.options))

    def log(self, data: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log(dict(data), step=step)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """A trackio table."""
        frame = library("pandas", extra="trackio").DataFrame(
            [list(row) for row in rows], columns=list(columns)
        )
        self._run.log({name: self._trackio.Table(dataframe=frame)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _talk_to_stderr(trackio: Any) -> None:
    """Move its greetings: standard output belongs to commands, whose lines programs read.

    ``contextlib.redirect_stdout`` would move the other threads' lines too.
    """
    for module in (trackio, getattr(trackio, "utils", None), getattr(trackio, "run", None)):
        if module is not None:
            module.print = functools.partial(print, file=sys.stderr)
