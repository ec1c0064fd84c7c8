"""The outcome of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """``found`` is what is there, ``remedy`` what to do when it is not right."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
