"""The contract between the processes of explorer-mq: messages, ids, subjects, experiences, errors.

No I/O, no asyncio, no torch: any process that speaks to a run can import this package alone. The
public names load on first use, so that a process pays for numpy only when it touches experiences.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explorer_mq_schemas.batches import BatchLifecycleState as BatchLifecycleState
    from explorer_mq_schemas.batches import BatchResult as BatchResult
    from explorer_mq_schemas.batches import BatchView as BatchView
    from explorer_mq_schemas.batches import TrainBatchManifest as TrainBatchManifest
    from explorer_mq_schemas.beats import Claims as Claims
    from explorer_mq_schemas.beats import WorkerBeat as WorkerBeat
    from explorer_mq_schemas.cancel import Cancel as Cancel
    from explorer_mq_schemas.codec import count as count
    from explorer_mq_schemas.codec import pack as pack
    from explorer_mq_schemas.codec import unpack as unpack
    from explorer_mq_schemas.codec import unpack_arrays as unpack_arrays
    from explorer_mq_schemas.errors import BatchTimeout as BatchTimeout
    from explorer_mq_schemas.errors import BusUnavailable as BusUnavailable
    from explorer_mq_schemas.errors import ConfigError as ConfigError
    from explorer_mq_schemas.errors import ContractError as ContractError
    from explorer_mq_schemas.errors import EngineError as EngineError
    from explorer_mq_schemas.errors import ExplorerError as ExplorerError
    from explorer_mq_schemas.errors import FencedError as FencedError
    from explorer_mq_schemas.errors import InvalidRequest as InvalidRequest
    from explorer_mq_schemas.errors import NotFound as NotFound
    from explorer_mq_schemas.errors import PermissionRefused as PermissionRefused
    from explorer_mq_schemas.errors import TaskError as TaskError
    from explorer_mq_schemas.errors import TransientError as TransientError
    from explorer_mq_schemas.events import Event as Event
    from explorer_mq_schemas.experiences import EID as EID
    from explorer_mq_schemas.experiences import CustomField as CustomField
    from explorer_mq_schemas.experiences import Experience as Experience
    from explorer_mq_schemas.experiences import VersionSegment as VersionSegment
    from explorer_mq_schemas.experiences import group_by as group_by
    from explorer_mq_schemas.experiences import (
        split_dpo_experience_to_single_turn as split_dpo_experience_to_single_turn,
    )
    from explorer_mq_schemas.policy import PolicyAnnouncement as PolicyAnnouncement
    from explorer_mq_schemas.results import Attempt as Attempt
    from explorer_mq_schemas.results import DeadLetter as DeadLetter
    from explorer_mq_schemas.results import Failure as Failure
    from explorer_mq_schemas.results import Result as Result
    from explorer_mq_schemas.subjects import Lane as Lane
    from explorer_mq_schemas.subjects import RunNames as RunNames
    from explorer_mq_schemas.subjects import SliceKey as SliceKey
    from explorer_mq_schemas.tasks import GenerationConfig as GenerationConfig
    from explorer_mq_schemas.tasks import Slice as Slice
    from explorer_mq_schemas.tasks import Status as Status
    from explorer_mq_schemas.tasks import Task as Task
    from explorer_mq_schemas.timeouts import AttemptTimeouts as AttemptTimeouts

_PUBLIC = {
    "batches": ("BatchLifecycleState", "BatchResult", "BatchView", "TrainBatchManifest"),
    "beats": ("Claims", "WorkerBeat"),
    "cancel": ("Cancel",),
    "codec": ("count", "pack", "unpack", "unpack_arrays"),
    "errors": (
        "BatchTimeout",
        "BusUnavailable",
        "ConfigError",
        "ContractError",
        "EngineError",
        "ExplorerError",
        "FencedError",
        "InvalidRequest",
        "NotFound",
        "PermissionRefused",
        "TaskError",
        "TransientError",
    ),
    "events": ("Event",),
    "experiences": (
        "EID",
        "CustomField",
        "Experience",
        "VersionSegment",
        "group_by",
        "split_dpo_experience_to_single_turn",
    ),
    "policy": ("PolicyAnnouncement",),
    "results": ("Attempt", "DeadLetter", "Failure", "Result"),
    "subjects": ("Lane", "RunNames", "SliceKey"),
    "tasks": ("GenerationConfig", "Slice", "Status", "Task"),
    "timeouts": ("AttemptTimeouts",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
