"""From a row to its task."""

from __future__ import annotations

from typing import Any

from explorer_mq.tasksets.protocol import Row, Source
from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq_schemas.errors import ConfigError
from explorer_mq_schemas.tasks import Task

_REWARDED = frozenset(("single_turn", "multi_turn"))
"""Built-in workflows: they put the prompt to the model and cannot do without a reward."""
_HERE_ONLY = {"workflow_key", "reward_fn_key"}
"""Format settings that are used up here; workers need the others."""
_SHOWN_KEYS = 8


class Formatter:
    """The tasks of one set.

    Workflow and reward are those the row names under ``workflow_key`` and ``reward_fn_key``, else
    the set's, else those that fit the source. ``task.index`` says where the row came from, so that
    feedback finds it again.
    """

    def __init__(
        self, settings: TasksetSettings, source: Source, taskset_id: int, *, is_eval: bool
    ) -> None:
        self._settings = settings
        self._source = source
        self._taskset_id = taskset_id
        self._is_eval = is_eval
        given = settings.format_args.model_dump(exclude_defaults=True, exclude=_HERE_ONLY)
        self._format_args = {**source.defaults.format_args, **given}

    def task(self, row: Row, number: int) -> Task:
        """The task of row ``number``.

        Raises:
            ConfigError: it has no workflow, lacks the reward its workflow needs, or lacks a key
                that ``format_args`` names.
        """
        settings, defaults = self._settings, self._source.defaults
        keys = settings.format_args
        workflow = self._named(row, number, keys.workflow_key) or (
            settings.workflow or defaults.workflow
        )
        reward_fn = self._named(row, number, keys.reward_fn_key) or (
            settings.reward_fn or defaults.reward_fn
        )
        if not workflow:
            raise self._fault(number, "no workflow; set workflow, or format_args.workflow_key")
        if workflow in _REWARDED and not reward_fn:
            raise self._fault(
                number,
                f"workflow {workflow!r} needs a reward; set reward_fn, or format_args.reward_fn_key",
            )
        self._check_keys(row, number, workflow)
        fitting = defaults.reward_fn_args if reward_fn == defaults.reward_fn else {}
        return Task(
            workflow=workflow,
            workflow_args=settings.workflow_args,
            reward_fn=reward_fn,
            reward_fn_args={**fitting, **settings.reward_fn_args},
            repeat_times=settings.repeat_times,
            raw_task=row,
            format_args=self._format_args,
            rollout_args=settings.rollout_args,
            is_eval=self._is_eval,
            pool=settings.pool,
            index={"taskset_id": self._taskset_id, "index": number},
        )

    def _named(self, row: Row, number: int, key: str | None) -> str | None:
        """The code a row names for itself; None if it leaves that to the set."""
        value = row.get(key) if key is not None else None
        if value is None or isinstance(value, str):
            return value
        raise self._fault(number, f"{key!r} is {value!r}; expected the name of code")

    def _check_keys(self, row: Row, number: int, workflow: str) -> None:
        """A row without its prompt fails here, not on a worker; what was not named may be absent."""
        needed = {key for key in ("prompt_key", "response_key") if key in self._format_args}
        if workflow in _REWARDED:
            needed.add("prompt_key")
        if "messages" in row:
            needed.discard("prompt_key")
        for name in sorted(needed):
            key = self._format_args.get(name, "prompt")
            if key not in row:
                has = ", ".join(list(row)[:_SHOWN_KEYS]) or "none"
                raise self._fault(number, f"no key {key!r}, it has {has}; set format_args.{name}")

    def _fault(self, number: int, what: Any) -> ConfigError:
        where = self._source.where(number)
        return ConfigError(f"taskset {self._settings.name!r}, {where}: {what}")
