"""NATS client frames, cut out of a byte stream: just enough to repeat or hold a published message.

Grammar of what a client sends: lines that end in CR LF; ``PUB subject [reply] size`` and ``HPUB subject
[reply] header-size total-size`` are followed by that many bytes and another CR LF.
"""

from __future__ import annotations

from dataclasses import dataclass

_END = b"\r\n"
_PUBLISHES = (b"PUB", b"HPUB")


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete protocol message; ``subject`` is empty unless it publishes."""

    raw: bytes
    subject: str = ""


class FrameReader:
    """Cuts what a client sends into frames; keeps the incomplete rest."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that ``chunk`` completes; their bytes joined are the stream so far."""
        self._rest += chunk
        found: list[Frame] = []
        start = 0
        while (frame := self._frame_at(start)) is not None:
            found.append(frame)
            start += len(frame.raw)
        del self._rest[:start]
        return found

    def _frame_at(self, start: int) -> Frame | None:
        line_end = self._rest.find(_END, start)
        if line_end < 0:
            return None
        end = line_end + len(_END)
        words = bytes(self._rest[start:line_end]).split()
        subject = ""
        if words and words[0].upper() in _PUBLISHES:
            subject = words[1].decode()
            end += int(words[-1]) + len(_END)
        if len(self._rest) < end:
            return None
        return Frame(bytes(self._rest[start:end]), subject)
