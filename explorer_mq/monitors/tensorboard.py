"""TensorBoard event files, through the ``tensorboard`` package alone: no TensorFlow, no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from explorer_mq.monitors.libraries import library
from explorer_mq.monitors.protocol import MonitorOptions
from explorer_mq.monitors.tables import as_markdown


class TensorboardMonitor:
    """Writes to ``<dir>/tensorboard/<name>``; each process adds a file there.

    Values are 32-bit floats there. Every row is flushed, so a killed run loses none. Options go to
    TensorBoard's ``EventFileWriter``.
    """

    requires: ClassVar[str] = "tensorboard"

    def __init__(self, options: MonitorOptions) -> None:
        writers = library("tensorboard.summary.writer.event_file_writer", extra="tensorboard")
        self._events = library("tensorboard.compat.proto.event_pb2", extra="tensorboard")
        self._summaries = library("tensorboard.compat.proto.summary_pb2", extra="tensorboard")
        folder = options.dir / "tensorboard" / options.folder
        self._writer = writers.EventFileWriter(str(folder), **options.options)

    def log(self, data: Mapping[str, float], step: int) -> None:
        """One scalar per value."""
        value = self._summaries.Summary.Value
        self._add([value(tag=key, simple_value=number) for key, number in data.items()], step)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """A Markdown table on the text page."""
        texts = library("tensorboard.plugins.text.summary_v2", extra="tensorboard")
        self._add(texts.text_pb(name, as_markdown(columns, rows)).value, step)

    def close(self) -> None:
        """End the event file."""
        self._writer.close()

    def _add(self, values: Any, step: int) -> None:
        summary = self._summaries.Summary(value=values)
        self._writer.add_event(
            self._events.Event(wall_time=time.time(), step=step, summary=summary)
        )
        self._writer.flush()
