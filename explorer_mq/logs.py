"""Logging of a process: text on a terminal, one JSON object a line elsewhere, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from explorer_mq.settings.model import LogSettings


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON; a traceback is text in ``error``."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send this process's records to ``stream`` (standard error), replacing earlier set-ups."""
    target = stream or sys.stderr
    as_text = settings.format == "text" or (settings.format == "auto" and target.isatty())
    sink = logging.StreamHandler(target)
    sink.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        if as_text
        else JsonLines()
    )
    logging.basicConfig(level=settings.level, handlers=[sink], force=True)
    logging.captureWarnings(capture=True)
