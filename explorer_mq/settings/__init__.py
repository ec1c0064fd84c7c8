"""Settings: one frozen value, read from files, environment and command line, in that order.

``model`` and ``engines`` say what there is, ``reference`` lists it by dotted path, ``layers`` reads
and merges, ``load`` checks. Constructing :class:`Settings` itself reads nothing but its arguments.
"""

from __future__ import annotations

from explorer_mq.settings.engines import EngineSettings, SyntheticSettings, VllmSettings
from explorer_mq.settings.explorer import ExplorerSettings
from explorer_mq.settings.load import load_settings, sources
from explorer_mq.settings.model import (
    DemoSettings,
    DynamicTimeoutSettings,
    LogSettings,
    NatsSettings,
    SchedulerSettings,
    ServerSettings,
    Settings,
    StreamSettings,
    TrainerSettings,
    UpSettings,
    WorkerSettings,
)

__all__ = [
    "DemoSettings",
    "DynamicTimeoutSettings",
    "EngineSettings",
    "ExplorerSettings",
    "LogSettings",
    "NatsSettings",
    "SchedulerSettings",
    "ServerSettings",
    "Settings",
    "StreamSettings",
    "SyntheticSettings",
    "TrainerSettings",
    "UpSettings",
    "VllmSettings",
    "WorkerSettings",
    "load_settings",
    "sources",
]
