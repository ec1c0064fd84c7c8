"""What the README says of the code is drawn from the code."""

from __future__ import annotations

from pathlib import Path

from explorer_mq.core.state import LEGAL_MOVES

README = Path(__file__).parents[2] / "README.md"


def test_moves_of_a_batch_are_those_of_the_table():
    lines = [
        f"{phase:<10} -> {', '.join(moves) or '(final)'}" for phase, moves in LEGAL_MOVES.items()
    ]
    assert "\n".join(lines) in README.read_text()
