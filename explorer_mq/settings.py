"""Settings of every process: one frozen model, checked at start, unknown keys refused.

Precedence: defaults < TOML files from left to right < environment ``EXPLORER_MQ_SECTION__FIELD`` <
command line ``--section.field value``.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from explorer_mq_schemas.errors import ConfigError

ENV_PREFIX = "EXPLORER_MQ_"
_DAY_S = 86_400.0


class Section(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NatsSettings(Section):
    """Where the NATS server is and as whom to connect."""

    url: str = Field(default="nats://127.0.0.1:4222", description="server url, or several by comma")
    nkey_seed_file: Path | None = Field(default=None, description="file with an nkey seed")
    credentials_file: Path | None = Field(default=None, description="NATS .creds file")
    tls_ca_file: Path | None = Field(default=None, description="CA certificate of the server")
    connect_timeout_s: float = Field(default=5.0, gt=0, description="limit of the first connect")
    request_timeout_s: float = Field(default=5.0, gt=0, description="limit of one request")


class ServerSettings(Section):
    """The embedded nats-server (`explorer-mq nats`, `up`, `demo`)."""

    host: str = Field(default="127.0.0.1", description="address to bind to")
    port: int = Field(default=4222, ge=0, le=65535, description="port; 0 takes a free one")
    store_dir: Path = Field(default=Path(".explorer-mq/nats"), description="where streams are kept")
    max_payload_bytes: int = Field(default=8 << 20, ge=1 << 16, description="largest message")
    max_store_bytes: int | None = Field(default=None, description="limit of all streams together")
    durability: Literal["process", "power"] = Field(
        default="process", description="what stored messages survive: any kill, or a power cut too"
    )


class StreamSettings(Section):
    """How much the run's streams keep."""

    replicas: int = Field(default=1, ge=1, le=5, description="copies in a NATS cluster")
    results_max_bytes: int | None = Field(default=None, description="limit of the result stream")
    results_max_age_s: float | None = Field(default=7 * _DAY_S, description="age limit of results")
    train_max_age_s: float | None = Field(default=7 * _DAY_S, description="of training batches")
    dead_max_age_s: float | None = Field(default=30 * _DAY_S, description="of dead letters")


class SchedulerSettings(Section):
    """Attempts, time-outs, slices."""

    max_timeout_s: float = Field(default=1800.0, gt=0, description="limit of one attempt")
    max_retry_times: int = Field(default=2, ge=0, description="attempts after the first")
    batch_deadline_s: float | None = Field(
        default=None, description="limit of a batch; default max_timeout_s * (retries + 1) + 10"
    )
    max_repeat_times_per_runner: int | None = Field(
        default=None, ge=1, description="runs per slice; default the whole group"
    )
    lease_s: float = Field(default=10.0, ge=1.0, description="how long a dead worker holds a slice")


class VllmSettings(Section):
    """The vLLM engine in the worker's process."""

    type: Literal["vllm"] = "vllm"
    model: str = Field(default="", description="directory of the model (Hugging Face layout)")
    dtype: str = Field(default="auto", description="torch dtype of the weights")
    max_model_len: int | None = Field(default=None, description="context limit in tokens")
    max_num_seqs: int = Field(default=256, ge=1, description="sequences in one engine step")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="share of the GPU")
    kv_cache_bytes: int | None = Field(default=None, description="size of the KV cache")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs per engine")
    seed: int = Field(default=0, description="engine seed")
    enforce_eager: bool | None = Field(default=None, description="no graph capture; CPU default")
    block_size: int | None = Field(default=None, description="tokens per KV block")
    logprobs_mode: str = Field(
        default="processed_logprobs", description="log-probabilities of the sampling distribution"
    )
    extra_args: dict[str, Any] = Field(default_factory=dict, description="further engine arguments")


class SyntheticSettings(Section):
    """An engine that makes up tokens, for scale tests and benchmarks."""

    type: Literal["synthetic"] = "synthetic"
    latency_s: float = Field(default=0.0, ge=0, description="time per request")
    latency_jitter: float = Field(default=0.0, ge=0, le=1, description="fraction of the latency")
    tokens: int = Field(default=8, ge=1, description="tokens per completion")
    vocab_size: int = Field(default=256, ge=2, description="token ids are below this")
    seed: int = Field(default=0, description="seed of tokens and latencies")
    fail_rate: float = Field(default=0.0, ge=0, le=1, description="share of requests that fail")


def _engine_type(value: Any) -> str:
    kind = value.get("type", "vllm") if isinstance(value, Mapping) else value.type
    return str(kind)


EngineSettings = Annotated[
    Annotated[VllmSettings, Tag("vllm")] | Annotated[SyntheticSettings, Tag("synthetic")],
    Discriminator(_engine_type),
]


class WorkerSettings(Section):
    """One worker: one engine, some slots."""

    id: str | None = Field(default=None, description="name of the worker; default a fresh one")
    pools: tuple[str, ...] = Field(default=("default",), min_length=1, description="whose tasks")
    slots: int = Field(default=8, ge=1, description="slices at a time")
    concurrent_mode: Literal["asynchronous", "sequential", "multi-threading"] = Field(
        default="asynchronous", description="how the runs of a slice are run"
    )
    drain_timeout_s: float = Field(default=10.0, ge=0, description="grace after SIGTERM")
    beat_interval_s: float = Field(default=2.0, gt=0, description="how often it reports")
    engine: EngineSettings = Field(default_factory=VllmSettings, description="inference engine")


class TrainerSettings(Section):
    """The trainer client."""

    name: str = Field(default="trainer", description="keeps its own position in the batches")
    prefetch: int = Field(default=2, ge=1, description="batches fetched ahead")
    lease_s: float = Field(default=30.0, ge=2, description="until an unacked batch comes again")


class UpSettings(Section):
    """`explorer-mq up`: everything on one host."""

    workers: int = Field(default=1, ge=1, description="worker processes")


class DemoSettings(Section):
    """`explorer-mq demo`: reinforcement learning end to end with a tiny model."""

    seed: int = Field(default=0, ge=0, description="of model, tasks and sampling")
    steps: int = Field(default=100, ge=20, description="training steps")
    workers: int = Field(default=1, ge=1, le=4, description="vLLM workers")
    out_dir: Path = Field(default=Path("demo-run"), description="model, metrics, picture, store")
    prompts: int = Field(default=32, ge=1, description="tasks per batch")
    group_size: int = Field(default=8, ge=2, description="runs per task")


class LogSettings(Section):
    """Logging of every process."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least")
    format: Literal["auto", "text", "json"] = Field(
        default="auto", description="auto: text on a terminal, JSON lines elsewhere"
    )


class Settings(BaseSettings):
    """All settings; ``run`` names every subject and stream."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    run: str = Field(default="default", description="name of the training run")
    nats: NatsSettings = Field(default_factory=NatsSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)
    streams: StreamSettings = Field(default_factory=StreamSettings)
    scheduler: SchedulerSettings = Field(default_factory=SchedulerSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    trainer: TrainerSettings = Field(default_factory=TrainerSettings)
    up: UpSettings = Field(default_factory=UpSettings)
    demo: DemoSettings = Field(default_factory=DemoSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[Any, ...]:
        """Only :func:`load_settings` merges sources: it can say where a bad value came from."""
        return (sources["init_settings"],)


def load_settings(
    files: Sequence[Path] = (),
    overrides: Sequence[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from files, environment and command line.

    Raises:
        ConfigError: a file is missing or unreadable, a key is unknown (with the nearest valid one),
            or a value is wrong; one line that names the key and where it came from.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in files:
        _merge(merged, _read_toml(path), origin, str(path), ())
    for name, text in sorted((environ or {}).items()):
        if name.startswith(ENV_PREFIX):
            keys = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
            _merge(merged, _nest(keys, _parse(text)), origin, name, ())
    for dotted, text in overrides:
        keys = tuple(dotted.replace("-", "_").split("."))
        _merge(merged, _nest(keys, _parse(text)), origin, f"--{dotted}", ())
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted key there is."""
    for name, field in model.model_fields.items():
        if name == "engine":
            for variant in (VllmSettings, SyntheticSettings):
                yield from known_keys(variant, f"{prefix}engine.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"settings file {path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"settings file {path}: {error}") from error


def _parse(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _nest(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _merge(
    into: dict[str, Any],
    new: Mapping[str, Any],
    origin: dict[str, str],
    source: str,
    path: tuple[str, ...],
) -> None:
    """Deep merge; lists are replaced, and another engine type drops the old one's keys."""
    for key, value in new.items():
        here = (*path, key)
        old = into.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict):
            if "type" in value and value["type"] != old.get("type"):
                old.clear()
            _merge(old, value, origin, source, here)
        elif isinstance(value, Mapping):
            into[key] = {}
            _merge(into[key], value, origin, source, here)
        else:
            into[key] = value
        origin[".".join(here)] = source


def _explain(error: ValidationError, origin: Mapping[str, str]) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if part not in ("vllm", "synthetic")]
    key = ".".join(parts)
    source = origin.get(key, origin.get(parts[0] if parts else "", ""))
    where = f" (from {source})" if source else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; see `explorer-mq config show`"
        return f"unknown setting {key}{where}{hint}"
    return f"{key}: {first['msg']}, got {first.get('input')!r}{where}"
