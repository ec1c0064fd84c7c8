"""MLflow, in a local SQLite file unless told otherwise."""

from __future__ import annotations

import os
import posixpath
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from explorer_mq.monitors.libraries import library
from explorer_mq.monitors.protocol import MonitorOptions

_AT_MOST = 1000
"""Metrics of one request; servers refuse more."""


def metric_name(name: str) -> str:
    """``name`` as MLflow takes it: "@" is "_at_", what else it refuses is "_".

    It also refuses names that are no plain relative path, and with one of them the whole row.
    """
    allowed = re.sub(r"[^\w.:/ -]", "_", name.replace("@", "_at_"), flags=re.ASCII)
    return posixpath.normpath(allowed.lstrip("/")).replace("..", "__")


class MlflowMonitor:
    """One MLflow run per name, continued when the run is resumed.

    Options: ``tracking_uri`` (default ``MLFLOW_TRACKING_URI`` of the environment, else the file
    ``<dir>/mlflow/mlflow.db``) and ``tags``.
    """

    requires: ClassVar[str] = "mlflow"

    def __init__(self, options: MonitorOptions) -> None:
        self._entities = library("mlflow.entities", extra="mlflow")
        tracking = library("mlflow.tracking", extra="mlflow")
        folder = (options.dir / "mlflow").absolute()
        own = options.options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
        if not own:
            folder.mkdir(parents=True, exist_ok=True)
        # A client of our own: the global one belongs to a trainer in this process.
        self._client = tracking.MlflowClient(tracking_uri=own or f"sqlite:///{folder}/mlflow.db")
        experiment = self._experiment(options.project, None if own else folder / "artifacts")
        self._run = self._run_id(experiment, options)

    def log(self, data: Mapping[str, float], step: int) -> None:
        """One point per value."""
        now = int(time.time() * 1000)
        metric = self._entities.Metric
        points = [metric(metric_name(key), value, now, step) for key, value in data.items()]
        for start in range(0, len(points), _AT_MOST):
            self._client.log_batch(self._run, metrics=points[start : start + _AT_MOST])

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """An artifact ``tables/<name>/<step>.json`` in the form MLflow's tables have."""
        content = {"columns": list(columns), "data": [[_plain(cell) for cell in r] for r in rows]}
        self._client.log_dict(self._run, content, f"tables/{metric_name(name)}/{step}.json")

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)

    def _experiment(self, project: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(project)
        if found is not None:
            return str(found.experiment_id)
        location = artifacts.as_uri() if artifacts else None
        return str(self._client.create_experiment(project, artifact_location=location))

    def _run_id(self, experiment: str, options: MonitorOptions) -> str:
        name = options.name.replace('"', "'")  # its filters cannot quote both
        wanted = f'attributes.run_name = "{name}"'
        for run in self._client.search_runs([experiment], filter_string=wanted, max_results=1):
            self._client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        run = self._client.create_run(experiment, run_name=name, tags=options.options.get("tags"))
        return str(run.info.run_id)


def _plain(cell: Any) -> Any:
    return cell if isinstance(cell, str | int | float | bool | None) else str(cell)
