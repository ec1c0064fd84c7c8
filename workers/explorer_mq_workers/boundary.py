"""Who is at fault: what user code raises becomes a :class:`TaskError`, once, here."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from explorer_mq_schemas.errors import ExplorerError, TaskError, TransientError
from explorer_mq_schemas.results import MAX_ERROR_CHARS, Failure


@asynccontextmanager
async def boundary(what: str) -> AsyncIterator[None]:
    """Classify what the code inside raises.

    Errors that name their culprit (the task, the infrastructure) pass. Everything else is the
    task's fault, also ``SystemExit`` and a ``CancelledError`` that nobody asked this task for:
    either would silently end more than the run.

    Raises:
        TaskError: from any other exception; names ``what`` and the exception.
    """
    try:
        yield
    except (TaskError, TransientError):
        raise
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        raise TaskError(f"{what}: something it awaited was cancelled") from error
    except ExplorerError as error:
        raise TaskError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
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


def _is_cancelled() -> bool:
    """Whether somebody wants the current asyncio task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
