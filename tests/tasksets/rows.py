"""Sets of rows for the tests, as user code: ``rows.py:make`` with options."""

from __future__ import annotations

from itertools import count

SEEN: list[int] = []


def make(rows, **columns):
    """Rows with their number, and features as functions of it would be: lists, used in a circle."""
    return [
        {"prompt": f"p{n}", "n": n, **{key: v[n % len(v)] for key, v in columns.items()}}
        for n in range(rows)
    ]


def endless():
    return ({"prompt": str(n)} for n in count())


class Lazy:
    """Rows made when they are asked for."""

    def __len__(self):
        return 1_000_000

    def __getitem__(self, number):
        SEEN.append(number)
        return {"prompt": str(number)}


def broken():
    raise RuntimeError("no rows today")


NUMBERS = [1, 2, 3]
TEXT = "prompt"


class Backwards:
    """A custom selector: from the last row to the first; counts what it hears."""

    def __init__(self, source, *, seed, args):
        self.rows = len(source)
        self.heard = 0

    def select(self, position, count):
        return [self.rows - 1 - n % self.rows for n in range(position, position + count)]

    def feedback(self, numbers, values):
        self.heard += len(numbers)

    def state_dict(self):
        return {"heard": self.heard}

    def load_state_dict(self, state):
        self.heard = state["heard"]


class TooFew(Backwards):
    def select(self, position, count):
        return [0]


class Outside(Backwards):
    def select(self, position, count):
        return [self.rows] * count
