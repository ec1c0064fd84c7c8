"""Weights & Biases, offline unless told otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from explorer_mq.monitors.libraries import library
from explorer_mq.monitors.protocol import MonitorOptions

_QUIET = {"console": "off", "silent": True}


class WandbMonitor:
    """One wandb run per name, continued when the run is resumed; files in ``<dir>/wandb``.

    Offline runs are sent later with ``wandb sync --append``. Options go to ``wandb.init``:
    ``{mode: online}`` sends at once.
    """

    requires: ClassVar[str] = "wandb"

    def __init__(self, options: MonitorOptions) -> None:
        self._wandb = library("wandb", extra="wandb")
        options.dir.mkdir(parents=True, exist_ok=True)  # wandb would go to /tmp without it
        opening: dict[str, Any] = {
            "project": options.project,
            "name": options.name,
            "id": re.sub(r"[^\w.-]", "-", options.name),
            "resume": "allow",
            "dir": str(options.dir),
            "mode": "offline",
            "reinit": "create_new",  # a trainer in this process may have a run of its own
            "settings": _QUIET,
        }
        self._run = self._wandb.init(**opening | dict(options.options))
        # wandb's own step only grows and late rows would be dropped; a plain value may go back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, data: Mapping[str, float], step: int) -> None:
        """One row; ``step`` is a value of it and the horizontal axis of all."""
        self._run.log({**data, "step": step})

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """A wandb table; cells of mixed types are allowed."""
        cells = [list(row) for row in rows]
        table = self._wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)
        self._run.log({name: table, "step": step})

    def close(self) -> None:
        """Finish the run; online this sends what is left."""
        self._run.finish()
