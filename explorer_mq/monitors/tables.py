"""Tables as Markdown, for tools that show text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; cells keep their line breaks as ``<br>``."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(cell: Any) -> str:
    escaped = str(cell).replace("\\", "\\\\").replace("|", "\\|")
    return "<br>".join(escaped.splitlines())
