"""Every setting there is, with its default and description. Units are in the names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from explorer_mq.monitors.settings import MonitorSettings
from explorer_mq.settings.engines import EngineSettings, VllmSettings
from explorer_mq.settings.explorer import ExplorerSettings
from explorer_mq.settings.section import Section
from explorer_mq_schemas.errors import ExplorerError
from explorer_mq_schemas.ids import check_run, encode_token

if TYPE_CHECKING:
    from explorer_mq.bus.connection import BusOptions
    from explorer_mq.bus.topology import StreamLimits

_DAY_S = 86_400.0
_URL_SCHEMES = ("nats://", "tls://", "ws://", "wss://")


def _checked_run(run: str) -> str:
    try:
        return check_run(run)
    except ExplorerError as error:
        raise ValueError(str(error)) from error


def _checked_id(text: str) -> str:
    try:
        encode_token(text)
    except ExplorerError as error:
        raise ValueError(str(error)) from error
    return text


def _checked_urls(urls: str) -> str:
    for url in urls.split(","):
        if not url.strip().startswith(_URL_SCHEMES):
            raise ValueError("a NATS url starts with nats://, tls://, ws:// or wss://")
    return urls


def _split_commas(value: Any) -> Any:
    """``"a,b"`` from a shell is as good as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


RunName = Annotated[str, AfterValidator(_checked_run)]
Identifier = Annotated[str, AfterValidator(_checked_id)]
Urls = Annotated[str, AfterValidator(_checked_urls)]
Pools = Annotated[tuple[Identifier, ...], BeforeValidator(_split_commas), Field(min_length=1)]


class NatsSettings(Section):
    """How this process reaches NATS."""

    url: Urls = Field(
        default="nats://127.0.0.1:4222", description="server, or several separated by commas"
    )
    nkey_seed_file: Path | None = Field(default=None, description="file with an nkey seed")
    credentials_file: Path | None = Field(
        default=None, description="credentials file (JWT and seed)"
    )
    tls_ca_file: Path | None = Field(
        default=None, description="certificate authority of the server's certificate"
    )
    connect_timeout_s: float = Field(
        default=5.0, gt=0, description="how long the first connection may take"
    )
    request_timeout_s: float = Field(default=5.0, gt=0, description="how long a reply may take")

    def options(self, name: str) -> BusOptions:
        """Connection options for the process ``name``, e.g. ``"coordinator"``; imports the bus."""
        from explorer_mq.bus.connection import BusOptions

        return BusOptions(
            url=self.url,
            name=name,
            nkey_seed_file=self.nkey_seed_file,
            credentials_file=self.credentials_file,
            tls_ca_file=self.tls_ca_file,
            connect_timeout_s=self.connect_timeout_s,
            request_timeout_s=self.request_timeout_s,
        )


class ServerSettings(Section):
    """The embedded nats-server of ``nats``, ``up`` and ``demo``."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=4222, ge=-1, le=65535, description="port; -1 takes a free one")
    store_dir: Path = Field(default=Path(".explorer-mq/nats"), description="where streams are kept")
    max_payload_bytes: int = Field(
        default=8 << 20,
        ge=64 << 10,
        le=64 << 20,
        description="largest message; more goes in chunks",
    )
    max_store_bytes: int | None = Field(
        default=None, ge=1, description="most the streams may take; default what the disk has"
    )
    durability: Literal["process", "power"] = Field(
        default="process",
        description="what stored messages survive: any kill (process) or a power cut too (power)",
    )


class StreamSettings(Section):
    """How much the streams keep."""

    replicas: int = Field(default=1, ge=1, le=5, description="copies of each stream in a cluster")
    results_max_bytes: int | None = Field(
        default=None, ge=1, description="most the results may take; default no limit"
    )
    results_max_age_s: float | None = Field(
        default=7 * _DAY_S, gt=0, description="how long results are kept"
    )
    train_max_age_s: float | None = Field(
        default=7 * _DAY_S, gt=0, description="how long training batches are kept"
    )
    dead_max_age_s: float | None = Field(
        default=30 * _DAY_S, gt=0, description="how long dead letters are kept"
    )
    weights_keep: int = Field(default=2, ge=1, description="policy versions kept")

    def limits(self) -> StreamLimits:
        """These limits as the bus takes them; imports the bus."""
        from explorer_mq.bus.topology import StreamLimits

        return StreamLimits(
            replicas=self.replicas,
            results_max_bytes=self.results_max_bytes,
            results_max_age_s=self.results_max_age_s,
            train_max_age_s=self.train_max_age_s,
            dead_max_age_s=self.dead_max_age_s,
        )


class OverRolloutSettings(Section):
    """Closing a batch before its slowest tasks are done."""

    ratio: float = Field(
        default=0.0, ge=0, lt=1, description="share of a step's tasks that may be left out"
    )
    wait_after_min_s: float = Field(
        default=30.0, ge=0, description="how long stragglers are waited for once enough are done"
    )
    return_partial_tasks: bool = Field(
        default=False, description="deliver the completed runs of tasks that were not"
    )


class DynamicTimeoutSettings(Section):
    """Ending attempts that take much longer than others did."""

    enable: bool = Field(default=False, description="whether it is in force")
    warmup_min_steps: int = Field(
        default=1, ge=1, description="complete train batches before it is"
    )
    ratio: float = Field(default=3.0, gt=0, description="times the mean of successful attempts")
    window_batches: int = Field(
        default=20, ge=1, description="how many of the newest batches the mean is over"
    )


class SchedulerSettings(Section):
    """When work is retried, cut up or given up."""

    max_timeout_s: float = Field(default=1800.0, gt=0, description="longest one attempt may take")
    max_retry_times: int = Field(default=2, ge=0, description="attempts after the first")
    batch_deadline_s: float | None = Field(
        default=None,
        gt=0,
        description="longest a batch may take; default every attempt's max_timeout_s and a margin",
    )
    max_repeat_times_per_runner: int | None = Field(
        default=None, ge=1, description="most runs of a task in one slice; default the whole group"
    )
    lease_s: float = Field(
        default=10.0, ge=1, description="how long a silent worker keeps its slices"
    )
    stall_timeout_s: float | None = Field(
        default=600.0,
        gt=0,
        description="longest an attempt may go without a token, model call or noted state",
    )
    retry_first_s: float = Field(
        default=0.5, ge=0, description="pause before the first retry; doubles with each"
    )
    retry_longest_s: float = Field(default=30.0, ge=0, description="longest pause before a retry")
    reconnect_grace_s: float = Field(
        default=1.0, ge=0, description="time a disconnected worker has to come back"
    )
    cancel_grace_s: float = Field(
        default=5.0, gt=0, description="time a worker has to drop cancelled work, else it is fenced"
    )
    stall_report_s: float = Field(
        default=30.0, gt=0, description="standstill after which it is reported with its cause"
    )
    leader_ttl_s: int = Field(
        default=5, ge=1, description="seconds without a sign after which a standby takes over"
    )
    snapshot_results: int = Field(
        default=5000, ge=1, description="results and decisions between two snapshots, at least"
    )
    runner_state_report_interval_s: float = Field(
        default=0.0, ge=0, description="how often the slots' states are logged; 0 never"
    )
    over_rollout: OverRolloutSettings = Field(
        default_factory=OverRolloutSettings, description="closing early"
    )
    dynamic_timeout: DynamicTimeoutSettings = Field(
        default_factory=DynamicTimeoutSettings, description="shorter time-outs by experience"
    )


class WorkerSettings(Section):
    """One worker process and its engine."""

    id: Identifier | None = Field(default=None, description="name of the worker; default a new one")
    pools: Pools = Field(default=("default",), description="pools whose tasks it takes")
    slots: int = Field(default=8, ge=1, description="slices run at once")
    concurrent_mode: Literal["asynchronous", "sequential", "multi-threading"] = Field(
        default="asynchronous", description="how the runs of a slice are run"
    )
    drain_timeout_s: float = Field(
        default=10.0, ge=0, description="time to finish after SIGTERM; the rest is handed back"
    )
    beat_interval_s: float = Field(default=2.0, gt=0, description="time between signs of life")
    engine: EngineSettings = Field(
        default_factory=VllmSettings, description="the inference engine; type vllm unless said"
    )


class TrainerSettings(Section):
    """How a trainer reads batches."""

    name: Identifier = Field(
        default="trainer", description="each name sees every batch once; processes may share one"
    )
    prefetch: int = Field(default=2, ge=1, description="batches fetched ahead")


class UpSettings(Section):
    """What ``up`` starts on one host."""

    workers: int = Field(default=1, ge=0, description="worker processes")


class DemoSettings(Section):
    """The demo: a tiny model learns a toy task."""

    seed: int = Field(default=0, ge=0, description="seed of model, prompts and sampling")
    steps: int = Field(default=100, ge=1, description="optimizer steps")
    workers: int = Field(default=1, ge=1, description="worker processes")
    out_dir: Path = Field(default=Path("demo-run"), description="where metrics and plots go")
    prompts: int = Field(default=32, ge=1, description="tasks per step")
    group_size: int = Field(default=8, ge=2, description="runs per task")


class LogSettings(Section):
    """What goes to standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least severity shown"
    )
    format: Literal["auto", "text", "json"] = Field(
        default="auto", description="auto is text on a terminal, else JSON lines"
    )


class Settings(BaseSettings):
    """All settings of all processes; each reads the sections it needs.

    Constructing it reads nothing but its arguments: ``load_settings`` merges files, environment and
    command line itself, because it can then say where a bad value came from and refuse unknown keys.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only."""
        return (init_settings,)

    run: RunName = Field(default="default", description="the training run; names all its streams")
    nats: NatsSettings = Field(default_factory=NatsSettings, description="connection to NATS")
    server: ServerSettings = Field(default_factory=ServerSettings, description="embedded server")
    streams: StreamSettings = Field(default_factory=StreamSettings, description="retention")
    scheduler: SchedulerSettings = Field(
        default_factory=SchedulerSettings, description="time-outs and retries"
    )
    explorer: ExplorerSettings = Field(
        default_factory=ExplorerSettings, description="the loop over task sets"
    )
    monitors: MonitorSettings = Field(
        default_factory=MonitorSettings, description="where metrics go"
    )
    worker: WorkerSettings = Field(default_factory=WorkerSettings, description="a worker")
    trainer: TrainerSettings = Field(default_factory=TrainerSettings, description="a trainer")
    up: UpSettings = Field(default_factory=UpSettings, description="all on one host")
    demo: DemoSettings = Field(default_factory=DemoSettings, description="the demo")
    log: LogSettings = Field(default_factory=LogSettings, description="logging")
