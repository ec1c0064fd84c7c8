"""Experiences: one training sample each, as numpy arrays.

Shapes use T for all tokens of a sample and R for its response (T = prompt_length + R).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explorer_mq_schemas.errors import ContractError, InvalidRequest

ExperienceType = Literal["single_turn", "multi_turn", "dpo"]

ARRAY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "logprobs": np.dtype(np.float32),
    "action_mask": np.dtype(np.bool_),
    "token_level_reward": np.dtype(np.float32),
    "advantages": np.dtype(np.float32),
    "returns": np.dtype(np.float32),
    "teacher_logprobs": np.dtype(np.float32),
    "chosen": np.dtype(np.int32),
    "rejected": np.dtype(np.int32),
    "routed_experts": np.dtype(np.uint8),
}
"""Optional arrays of an experience and their dtypes."""


def _suffix() -> str:
    return secrets.token_hex(3)


@dataclass(frozen=True, slots=True)
class EID:
    """Names an experience: batch, task, run within the group, step within the run.

    ``suffix`` (6 hex characters) tells apart experiences that share the rest.
    """

    batch: int | str = ""
    task: int | str = ""
    run: int = 0
    step: int = 0
    suffix: str = field(default_factory=_suffix)

    @property
    def uid(self) -> str:
        """``batch/task/run/step/suffix``."""
        return f"{self.rid}/{self.step}/{self.suffix}"

    @property
    def sid(self) -> str:
        """``batch/task/step``: the group of one step."""
        return f"{self.batch}/{self.task}/{self.step}"

    @property
    def rid(self) -> str:
        """``batch/task/run``: one rollout."""
        return f"{self.batch}/{self.task}/{self.run}"

    @property
    def tid(self) -> str:
        """``batch/task``: the group of one task."""
        return f"{self.batch}/{self.task}"

    def __str__(self) -> str:
        return self.uid

    def to_dict(self) -> dict[str, int | str]:
        """The five fields."""
        return {name.name: getattr(self, name.name) for name in fields(self)}


class VersionSegment(NamedTuple):
    """Response tokens ``start <= i < end`` were sampled by policy version ``version``."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CustomField:
    """Asks for ``info[source_field]`` as column ``destination_field`` of the training batch.

    ``data_type`` is the column's numpy dtype by name, e.g. ``float32``.
    """

    source_field: str
    destination_field: str
    data_type: str = "float32"


@dataclass(kw_only=True, eq=False)
class Experience:
    """One training sample.

    Arrays may be given as lists, numpy arrays or tensors on the CPU; they are converted.
    ``custom_fields`` may be given as mappings.

    Shapes: tokens [T] int32; logprobs, action_mask, advantages, returns, token_level_reward,
        teacher_logprobs [R]; routed_experts [T - 1, layers, k] uint8.

    Raises:
        ContractError: an array has the wrong number of dimensions or cannot be converted, a version
            segment or custom field is malformed, or a single-turn sample has no prompt or no
            response.
    """

    tokens: NDArray[np.int32]
    prompt_length: int = 1
    eid: EID = field(default_factory=EID)
    experience_type: ExperienceType | None = None
    reward: float | None = None
    logprobs: NDArray[np.float32] | None = None
    action_mask: NDArray[np.bool_] | None = None
    token_level_reward: NDArray[np.float32] | None = None
    advantages: NDArray[np.float32] | None = None
    returns: NDArray[np.float32] | None = None
    teacher_logprobs: NDArray[np.float32] | None = None
    chosen: NDArray[np.int32] | None = None
    rejected: NDArray[np.int32] | None = None
    routed_experts: NDArray[np.uint8] | None = None
    multi_modal_inputs: dict[str, NDArray[Any]] | None = None
    truncate_status: str | None = None
    info: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    prompt_text: str | None = None
    response_text: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chosen_messages: list[dict[str, Any]] | None = None
    rejected_messages: list[dict[str, Any]] | None = None
    custom_fields: list[CustomField] | None = None
    policy_version_start: int | None = None
    policy_version_end: int | None = None
    versions: tuple[VersionSegment, ...] = ()

    def __post_init__(self) -> None:
        self.tokens = as_array("tokens", self.tokens, np.dtype(np.int32))
        for name, dtype in ARRAY_DTYPES.items():
            given = getattr(self, name)
            if given is not None:
                setattr(self, name, as_array(name, given, dtype))
        try:
            self.versions = tuple(VersionSegment(*segment) for segment in self.versions)
            if self.custom_fields is not None:
                self.custom_fields = [_custom_field(given) for given in self.custom_fields]
        except TypeError as error:
            raise ContractError(f"experience {self.eid}: {error}") from error
        if self.experience_type is None:
            self.experience_type = self._derive_type()
        if self.experience_type == "dpo":
            self.prompt_length = len(self.tokens)
        elif self.experience_type == "single_turn":
            self._complete_single_turn()

    @property
    def response_length(self) -> int:
        """R: tokens after the prompt."""
        return len(self.tokens) - self.prompt_length

    def to_dict(self) -> dict[str, Any]:
        """For people: ids, lengths, texts, reward; no token ids."""
        shown: dict[str, Any] = {
            "eid": self.eid.to_dict(),
            "type": self.experience_type,
            "prompt_length": self.prompt_length,
            "response_length": self.response_length,
            "info": self.info,
            "metrics": self.metrics,
        }
        for name in ("prompt_text", "response_text", "messages", "tools", "reward"):
            if getattr(self, name) is not None:
                shown[name] = getattr(self, name)
        if self.truncate_status is not None:
            shown["truncate_status"] = self.truncate_status
        return shown

    def _derive_type(self) -> ExperienceType:
        if self.action_mask is not None:
            return "multi_turn"
        if self.chosen is not None and self.rejected is not None:
            return "dpo"
        return "single_turn"

    def _complete_single_turn(self) -> None:
        if self.prompt_length <= 0:
            raise ContractError(f"experience {self.eid}: prompt_length must be positive")
        if self.truncate_status == "prompt_truncated":
            size = 0 if self.logprobs is None else len(self.logprobs)
            self.action_mask = np.zeros(size, np.bool_)
        elif self.response_length <= 0:
            raise ContractError(f"experience {self.eid}: it has no response tokens")
        elif self.action_mask is None:
            self.action_mask = np.ones(self.response_length, np.bool_)


def group_by(
    experiences: Iterable[Experience], by: Literal["task", "run", "step"]
) -> dict[str, list[Experience]]:
    """Experiences by ``tid``, ``rid`` or ``sid``, in order of first appearance.

    Raises:
        InvalidRequest: (a ``ValueError``) ``by`` is something else.
    """
    key = {"task": "tid", "run": "rid", "step": "sid"}.get(by)
    if key is None:
        raise InvalidRequest(f"group_by {by!r}: choose task, run or step")
    groups: dict[str, list[Experience]] = {}
    for experience in experiences:
        groups.setdefault(getattr(experience.eid, key), []).append(experience)
    return groups


def split_dpo_experience_to_single_turn(experiences: Iterable[Experience]) -> list[Experience]:
    """Two single-turn samples for each preference pair: the chosen response, then the rejected.

    Both keep the pair's batch, task, run and step, each with a suffix of its own.

    Raises:
        InvalidRequest: an experience is not a preference pair.
    """
    singles: list[Experience] = []
    for pair in experiences:
        if pair.chosen is None or pair.rejected is None:
            raise InvalidRequest(f"experience {pair.eid} has no chosen and rejected responses")
        singles.append(_one_side(pair, pair.chosen, pair.chosen_messages))
        singles.append(_one_side(pair, pair.rejected, pair.rejected_messages))
    return singles


def _one_side(
    pair: Experience, response: NDArray[np.int32], messages: list[dict[str, Any]] | None
) -> Experience:
    return Experience(
        tokens=np.concatenate([pair.tokens, response]),
        prompt_length=len(pair.tokens),
        eid=replace(pair.eid, suffix=_suffix()),
        experience_type="single_turn",
        reward=pair.reward,
        multi_modal_inputs=pair.multi_modal_inputs,
        info=dict(pair.info),
        metrics=dict(pair.metrics),
        prompt_text=pair.prompt_text,
        messages=messages,
        tools=pair.tools,
        custom_fields=pair.custom_fields,
        policy_version_start=pair.policy_version_start,
        policy_version_end=pair.policy_version_end,
    )


def _custom_field(given: CustomField | Mapping[str, str]) -> CustomField:
    return given if isinstance(given, CustomField) else CustomField(**given)


def as_array(name: str, value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``value`` as field ``name``: a contiguous array of ``dtype``, not copied when it is one.

    Raises:
        ContractError: it is no array of numbers, a number does not fit ``dtype``, or the number of
            dimensions is not the field's.
    """
    try:
        given = np.asarray(_on_host(value, dtype))
        with np.errstate(over="raise", invalid="raise"):
            array = np.ascontiguousarray(given, dtype=dtype)
        if dtype.kind in "iu" and given.dtype != dtype and not np.array_equal(array, given):
            raise ValueError("a number does not fit")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ContractError(f"{name}: cannot be made an array of {dtype}: {error}") from error
    wanted = 3 if name == "routed_experts" else 1
    if array.ndim != wanted:
        raise ContractError(f"{name}: expected {wanted} dimension(s), got shape {array.shape}")
    return array


def _on_host(value: Any, dtype: np.dtype[Any]) -> Any:
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    # numpy has no bfloat16; every float narrower than 32 bits widens exactly.
    return (tensor.float() if dtype.kind == "f" else tensor).numpy()


def total_tokens(experiences: Sequence[Experience]) -> int:
    """Response tokens of all ``experiences``."""
    return sum(experience.response_length for experience in experiences)
