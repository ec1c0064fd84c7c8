"""Settings become arguments, failures become remedies; vLLM itself is not imported."""

from __future__ import annotations

from pathlib import Path

from explorer_mq.settings import VllmSettings
from explorer_mq_workers.engines import vllm_api

MODEL = Path("/models/one")


def test_cpu_arguments_are_for_cpus_only():
    on_cpu = vllm_api.engine_arguments(VllmSettings(), MODEL, is_cpu=True)
    on_gpu = vllm_api.engine_arguments(VllmSettings(), MODEL, is_cpu=False)
    assert on_cpu["enforce_eager"] is True
    assert on_cpu.keys() - on_gpu.keys() == {"block_size", "kv_cache_memory_bytes"}
    assert on_gpu.keys() - on_cpu.keys() == {"gpu_memory_utilization"}
    assert on_gpu["enforce_eager"] is False


def test_settings_win_over_defaults_and_extra_args_over_settings():
    settings = VllmSettings(
        block_size=16, kv_cache_bytes=1, enforce_eager=False, extra_args={"block_size": 64}
    )
    found = vllm_api.engine_arguments(settings, MODEL, is_cpu=True)
    assert (found["block_size"], found["kv_cache_memory_bytes"]) == (64, 1)
    assert found["enforce_eager"] is False


def test_environment_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    monkeypatch.setenv("EXMQ_ENGINE_OWNER", "")
    monkeypatch.setattr(vllm_api, "is_cpu_build", lambda: True)
    vllm_api.prepare_environment()
    import os

    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"


def test_gpu_build_gets_no_cpu_environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXMQ_ENGINE_OWNER", "")
    monkeypatch.setattr(vllm_api, "is_cpu_build", lambda: False)
    vllm_api.prepare_environment()
    import os

    assert "OMP_NUM_THREADS" not in os.environ
    assert "TORCHDYNAMO_DISABLE" not in os.environ


def test_failed_import_names_the_remedy():
    missing = vllm_api.explain_import(ModuleNotFoundError("no vllm", name="vllm"))
    assert "pip install 'explorer-mq[gpu]'" in str(missing)
    broken = RuntimeError("operator torchvision::nms does not exist")
    assert "pip uninstall -y torchvision torchaudio torchcodec" in str(
        vllm_api.explain_import(broken)
    )
    wrapped = ImportError("cannot import name 'LLM'")
    wrapped.__cause__ = OSError("libtorchaudio.so: undefined symbol")
    assert "pip uninstall" in str(vllm_api.explain_import(wrapped))
    other = vllm_api.explain_import(OSError("libcuda.so.1: cannot open shared object file"))
    assert "libcuda" in str(other)
    assert "doctor" in str(other)
