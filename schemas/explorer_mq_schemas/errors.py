"""The error tree. Each family says who is at fault and therefore what happens next.

    ExplorerError
    ├── ConfigError        the user's settings or files        stop at start, exit code 2
    ├── ContractError      a message that breaks the contract  rejected, dead-lettered, counted
    ├── TransientError     infrastructure, nobody's fault      retried elsewhere
    │   ├── BusUnavailable     no NATS server could be reached      exit code 3
    │   └── EngineError        the engine failed or is overloaded
    ├── TaskError          the task's own code or data         retried up to the limit, dead-lettered
    ├── FencedError        another writer owns the journal     stop: this process lost leadership
    ├── NotFound           an id nobody knows                  exit code 4
    ├── PermissionRefused  the server denied a subject         exit code 2
    ├── InvalidRequest     arguments that cannot be accepted   exit code 2, nothing was changed
    └── BatchTimeout       a deadline passed too early         the batch was not finished

An error travels between processes as ``to_wire()``: its code and message, never a pickled object.
"""

from __future__ import annotations

from typing import ClassVar


class ExplorerError(Exception):
    """Root of every error raised on purpose by explorer-mq; never raised itself."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def to_wire(self) -> dict[str, str]:
        """``{"code", "message"}``, what a peer needs to raise the same error."""
        return {"code": self.code, "message": str(self)}


class ConfigError(ExplorerError):
    """Settings, files or command line are wrong; the message names the field and the remedy."""

    code = "config"
    exit_code = 2


class ContractError(ExplorerError):
    """A message or buffer that breaks the wire contract; it is set aside, never acted on."""

    code = "contract"


class TransientError(ExplorerError):
    """Infrastructure failed; the same work may succeed elsewhere or later."""

    code = "transient"


class BusUnavailable(TransientError):
    """NATS cannot be reached, or did not answer in time."""

    code = "bus_unavailable"
    exit_code = 3


class EngineError(TransientError):
    """The inference engine died, is overloaded, or refused the request."""

    code = "engine"


class TaskError(ExplorerError):
    """The task's own workflow, reward or data failed; retried up to its limit."""

    code = "task"


class FencedError(ExplorerError):
    """Another process has written to the journal: this one is no longer the leader."""

    code = "fenced"


class NotFound(ExplorerError, KeyError):
    """The run, batch, task or worker is not known."""

    code = "not_found"
    exit_code = 4

    def __str__(self) -> str:
        """The plain message; ``KeyError`` would print its repr."""
        return str(self.args[0]) if self.args else ""


class InvalidRequest(ExplorerError, ValueError):
    """A call whose arguments cannot be accepted; nothing was changed."""

    code = "invalid"
    exit_code = 2


class PermissionRefused(ExplorerError):
    """The NATS server denied this role a subject; the message names it."""

    code = "permission"
    exit_code = 2


class BatchTimeout(ExplorerError, TimeoutError):
    """A batch's deadline passed before enough of its tasks were settled."""

    code = "timeout"


_FAMILIES: tuple[type[ExplorerError], ...] = (
    ConfigError,
    ContractError,
    TransientError,
    BusUnavailable,
    EngineError,
    TaskError,
    FencedError,
    NotFound,
    InvalidRequest,
    PermissionRefused,
    BatchTimeout,
)
_BY_CODE = {family.code: family for family in _FAMILIES}


def from_wire(code: str, message: str) -> ExplorerError:
    """The error a peer reported; an unknown code becomes a :class:`TransientError`."""
    return _BY_CODE.get(code, TransientError)(message)
