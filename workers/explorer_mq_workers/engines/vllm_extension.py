"""Loaded by vLLM into every engine process (``worker_extension_cls``): safe weight loading.

Importing it makes the process die with its parent: vLLM's engine core otherwise outlives a parent
that was killed with -9. So the worker itself must never import it: a forked core would inherit the
module as imported already.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

_parent = os.environ.get("EXMQ_ENGINE_PARENT")
if _parent and os.getppid() == int(_parent):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(_parent):
        os._exit(1)


class WeightLoader:
    """Mixed into vLLM's worker class; ``self`` is the worker."""

    vllm_config: Any
    model_runner: Any
    reload_weights: Any
    _exmq_shapes: dict[str, tuple[int, ...]]
    _exmq_held: tuple[int, str]

    def exmq_load_policy(self, version: int, path: str) -> dict[str, Any]:
        """Check the file against the start checkpoint, then load it; says what is held now.

        A refusal is returned as ``{"refused": reason}``: nothing was touched then. vLLM itself would
        leave half-loaded tensors behind and die at the next step.
        """
        import torch
        from safetensors.torch import load_file

        if not hasattr(self, "_exmq_shapes"):
            self._exmq_shapes = checkpoint_shapes(Path(self.vllm_config.model_config.model))
        try:
            tensors = load_file(path)
        except Exception as error:  # noqa: BLE001 - the refusal carries it
            return {"refused": f"unreadable weights: {type(error).__name__}: {error}"}
        reason = mismatch(self._exmq_shapes, {k: tuple(v.shape) for k, v in tensors.items()})
        bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
        if bad:
            reason = reason or f"tensors with NaN or infinity: {', '.join(bad[:3])}"
        if reason:
            return {"refused": reason}
        self.reload_weights(weights_iterator=iter(tensors.items()))
        repack_tied_heads(self.model_runner.get_model())
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._exmq_held = (version, digest)
        return {"version": version, "sha256": digest}

    def exmq_held(self) -> dict[str, Any]:
        """Version and sha256 of what was loaded last; version 0 is the start checkpoint."""
        version, digest = getattr(self, "_exmq_held", (0, ""))
        return {"version": version, "sha256": digest, "pid": os.getpid()}


def checkpoint_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a checkpoint directory."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def mismatch(wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> str:
    """Why ``given`` cannot replace ``wanted``; empty when it can."""
    missing = sorted(wanted.keys() - given.keys())
    extra = sorted(given.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & given.keys() if wanted[k] != given[k])
    if missing:
        return f"tensors missing: {', '.join(missing[:3])}"
    if extra:
        return f"tensors the model does not have: {', '.join(extra[:3])}"
    if shapes:
        return f"shape of {shapes[0]} is {given[shapes[0]]}, the model has {wanted[shapes[0]]}"
    return ""


def repack_tied_heads(model: Any) -> None:
    """CPU backend: a tied output head keeps a packed copy that reloading leaves stale."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        tied = type(method).__name__ == "UnquantizedEmbeddingMethod"
        if tied and method is not None and hasattr(module, "cpu_linear"):
            method.process_weights_after_loading(module)
