"""The part of the vLLM engine that runs inside its processes (``worker_extension_cls``).

vLLM imports this module in each process that holds a share of the model. The worker itself never
imports it: a forked engine core would take the module as imported already and skip what happens on
import, which is why :meth:`PolicyLoader.exmq_attach` does it once more.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from explorer_mq_workers.engines.checkpoint import digest, weight_files
from explorer_mq_workers.engines.lifeline import bind_to_owner

bind_to_owner()


class PolicyLoader:
    """Mixed into vLLM's worker class, so ``self`` is the worker; called by ``collective_rpc``."""

    vllm_config: Any
    model_runner: Any
    reload_weights: Any
    _exmq_held: tuple[int, str]

    def exmq_attach(self) -> dict[str, int]:
        """Tie this process to its owner and leave the terminal's signals to it; says who this is.

        A forked process shares the wake-up descriptor of its parent's event loop: a signal sent to
        one would arrive in the other. Ctrl-C is the owner's, which hands its work back first.
        """
        bind_to_owner()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return {"pid": os.getpid()}

    def exmq_load_policy(self, version: int, path: str) -> dict[str, Any]:
        """Load the weights at ``path``; says which version and SHA-256 this process holds now.

        The file was checked before. The digest is taken here again, while the weights load, so that
        the answer tells what was read in this process.
        """
        source = Path(path)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(digest, source)
            self.reload_weights(weights_iterator=_tensors(source))
            _repack_tied_head(self.model_runner.get_model())
            self._exmq_held = (version, found.result())
        return self.exmq_held()

    def exmq_held(self) -> dict[str, Any]:
        """Version and digest of what was loaded last; version 0 is the start checkpoint."""
        version, sha256 = getattr(self, "_exmq_held", (0, ""))
        return {"version": version, "sha256": sha256}


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)


def _repack_tied_head(model: Any) -> None:
    """The CPU backend packs a copy of a tied output head, which reloading leaves stale.

    Source: measured on vLLM 0.32, error 0.1 to 0.7 in log-probability; same code in 0.33.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if hasattr(module, "cpu_linear") and type(method).__name__ == "UnquantizedEmbeddingMethod":
            assert method is not None
            method.process_weights_after_loading(module)
