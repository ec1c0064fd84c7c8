"""Engine processes end with the worker that owns them, however it ends.

vLLM's engine core outlives a parent that was killed with -9. Two guards, both of the kernel's making:
a direct child asks for SIGKILL at its parent's death; a process further down (vLLM's own workers when
a model spans several GPUs) watches the owner through a pidfd and takes its own parent along.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading

OWNER_VARIABLE = "EXMQ_ENGINE_OWNER"
"""Environment variable with the process id of the owner."""

_PR_SET_PDEATHSIG = 1


def bind_to_owner() -> None:
    """End this process when the owner named by the environment ends; harmless to call twice.

    The owner must have started this process, or an ancestor, from a thread that lives as long as the
    owner: the kernel ties the signal to the thread that forked.
    """
    owner = int(os.environ.get(OWNER_VARIABLE, "0"))
    if owner in {0, os.getpid()}:
        return
    if os.getppid() == owner:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != owner:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        _watch(owner, parent=os.getppid())


def _watch(owner: int, parent: int) -> None:
    """End this process and ``parent``, which started it, when ``owner`` ends."""

    def end_with_owner() -> None:
        waiting = select.poll()
        waiting.register(gone, select.POLLIN)
        waiting.poll()
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        gone = os.pidfd_open(owner)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=end_with_owner, name="owner", daemon=True).start()
