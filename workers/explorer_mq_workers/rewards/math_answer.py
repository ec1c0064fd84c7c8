r"""Final answers of word problems: GSM8K's ``#### 42``, ``\boxed{42}``, ``the answer is 42``."""

from __future__ import annotations

import re
from fractions import Fraction

from explorer_mq_schemas.errors import TaskError
from explorer_mq_schemas.tasks import Task

_MARK = re.compile(r"(?P<boxed>\\boxed\s*\{)|(?P<tag><answer>)|####", re.IGNORECASE)
_PHRASE = re.compile(r"\banswer\s*(?:is\b|[:=])", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<!\d)[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?", re.ASCII
)
_UNIT = re.compile(r"\s+[a-z][a-z. ]*", re.ASCII | re.IGNORECASE)
_WORD = re.compile(r"(?<![\\a-z])[a-z]{2,}", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\left|\\right|\\[!,;:()\[\] ]|\\?[$%]|\^\s*\{?\\circ\}?|\*\*|[€£]")
_MAX_CHARS = 400
"""A final answer is short; what runs on for longer is cut, so that no text takes long to judge."""


def math_answer(task: Task, answer: str, *, strict: bool = False) -> float:
    r"""1 if the final answer equals the reference answer, else 0.

    Numbers are compared exactly and by value: ``1,000``, ``$1000.00`` and ``1000`` are equal, so are
    ``1/2``, ``\frac{1}{2}`` and ``0.5``; units and ``%`` do not count. Other answers are compared
    as text. The last ``####``, ``\boxed{}`` or ``<answer>`` counts, else the last "answer is", both
    in the answer and in the reference; without any the last number of the answer.

    Args:
        task: its row has the reference answer.
        answer: the text to judge.
        strict: no credit without one of these marks.

    Raises:
        TaskError: the row has no reference answer.
    """
    if task.truth is None:
        key = task.format_args.get("response_key", "answer")
        raise TaskError(f"the task's row has no {key!r}; set format_args.response_key")
    wanted = final_answer(str(task.truth)) or str(task.truth)
    given = final_answer(answer)
    if given is None:
        numbers = [] if strict else _NUMBER.findall(answer)
        given = numbers[-1] if numbers else ""
    return float(_equal(_plain(given), _plain(wanted)))


def final_answer(text: str) -> str | None:
    """What follows the last mark of a final answer; None without a mark."""
    marks = list(_MARK.finditer(text)) or list(_PHRASE.finditer(text))
    if not marks:
        return None
    kinds = marks[-1].groupdict()
    rest = text[marks[-1].end() :][:_MAX_CHARS].lstrip(" \t\n*:")
    if kinds.get("boxed"):
        return _until_brace(rest)
    if kinds.get("tag"):
        return rest.partition("</")[0]
    return rest.partition("\n")[0]


def _until_brace(text: str) -> str:
    depth = 1
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:at]
    return text


def _plain(text: str) -> str:
    """Without LaTeX's dressing, currency, percent signs and a full stop at the end."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",")
    text = _TEXT.sub(r" \1", _FRACTION.sub(r"\1/\2", text))
    return _NOISE.sub("", text).strip().rstrip(".").strip()


def _equal(given: str, wanted: str) -> bool:
    number = _value(wanted)
    if number is not None:
        return _value(given) == number or _worded_value(given) == number
    return "".join(given.split()).lower() == "".join(wanted.split()).lower() != ""


def _value(text: str) -> Fraction | None:
    """The number a text is, after its last ``=`` and before a unit; None for ``2x`` or ``(1, 2)``."""
    text = text.rpartition("=")[2].strip()
    found = _NUMBER.match(text)
    if found is None or not (found.end() == len(text) or _UNIT.fullmatch(text, found.end())):
        return None
    return _fraction(found[0])


def _worded_value(text: str) -> Fraction | None:
    """The first number of a sentence; a formula's does not stand for the formula."""
    found = _NUMBER.search(text) if _WORD.search(text) else None
    return None if found is None else _fraction(found[0])


def _fraction(number: str) -> Fraction | None:
    above, _, below = number.replace(",", "").partition("/")
    try:
        return Fraction(above.strip()) / Fraction(below.strip() or 1)
    except (ValueError, ZeroDivisionError):  # more digits than Python converts, or a division by 0
        return None
