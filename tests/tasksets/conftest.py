"""Settings of sets whose rows come from ``rows.py`` or from files written by the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from explorer_mq.tasksets.settings import TasksetSettings

ROWS = Path(__file__).with_name("rows.py")


@pytest.fixture(scope="session")
def rows_file() -> Path:
    """The user's file with rows and selectors."""
    return ROWS


@pytest.fixture(scope="session")
def make_set():
    """Settings of a set of ``rows`` rows; further fields as given."""

    def make(rows=7, name="set", columns=None, **fields):
        fields = {"workflow": "rows:none", "path": f"{ROWS}:make", **fields}
        if fields["path"].endswith(":make"):
            fields.setdefault("options", {"rows": rows, **(columns or {})})
        return TasksetSettings(name=name, **fields)

    return make


@pytest.fixture
def write_jsonl(tmp_path):
    """A file of JSON lines; a text among the rows is written as it is."""

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file = tmp_path / name
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return file

    return write
