"""How many tasks of a step suffice."""

from __future__ import annotations

import math
from fractions import Fraction


def min_wait_num(batch_size: int, ratio: float) -> int | None:
    """Tasks to wait for when a share ``ratio`` of ``batch_size`` may be left out; None: all.

    Exact in the decimal number that ``ratio`` was written as: of 10 tasks with 0.7 left out, 3
    remain, where floating point would leave 4.
    """
    if ratio <= 0:
        return None
    return max(1, math.ceil(batch_size * (1 - Fraction(str(ratio)))))
