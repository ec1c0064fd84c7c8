"""Who is at fault: what user code raises becomes a :class:`TaskError`, once, here."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from explorer_mq_schemas.errors import ConfigError, ExplorerError, TaskError
from explorer_mq_schemas.results import MAX_ERROR_CHARS, Failure


@contextmanager
def boundary(what: str) -> Iterator[None]:
    """Classify what the code inside raises: typed errors pass, everything else is the task's fault.

    Raises:
        TaskError: from any other exception; names ``what`` and the exception.
    """
    try:
        yield
    except ConfigError as error:
        raise TaskError(f"{what}: {error}") from error
    except ExplorerError:
        raise
    except Exception as error:
        raise TaskError(f"{what}: {type(error).__name__}: {error}") from error


def failure_of(error: BaseException) -> Failure:
    """``error`` as it is reported: its code, class, text and the end of its traceback."""
    cause = error.__cause__ if isinstance(error, TaskError) and error.__cause__ else error
    text = "".join(traceback.format_exception(error))
    return Failure(
        code=error.code if isinstance(error, ExplorerError) else "error",
        kind=type(cause).__name__,
        message=(str(error) or type(error).__name__)[:MAX_ERROR_CHARS],
        traceback=text[-MAX_ERROR_CHARS:],
    )
