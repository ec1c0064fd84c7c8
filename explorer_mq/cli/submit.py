"""``submit``: the rows of a file as batches that close by themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explorer_mq.cli.ask import connected, parse_batch_id, run_async, wait_closed
from explorer_mq.cli.batch import exit_code
from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_fields, print_json
from explorer_mq_schemas.errors import ConfigError

if TYPE_CHECKING:
    from explorer_mq_schemas.tasks import Task

_DEFAULT_REWARDS = {"single_turn": "exact_match"}
"""Workflows that cannot do without a reward; custom ones may compute their own."""

Batch = tuple[int | str, "list[Task]"]


def _submit(invocation: Invocation) -> int:
    return run_async(invocation, _submit_all(invocation))


async def _submit_all(invocation: Invocation) -> int:
    """Check every row before the first batch goes out, then read again, one batch at a time."""
    from explorer_mq.coordinator_actor import CoordinatorHandle

    options = invocation.options
    template = _template(options)
    split = _count_rows(options.file, template) > (options.batch_size or float("inf"))
    async with connected(invocation.settings) as bus:
        coordinator = CoordinatorHandle(bus)
        submitted: list[int | str] = []
        for batch_id, tasks in _batches(options, template, split=split):
            await coordinator.submit_batch(
                batch_id=batch_id,
                tasks=tasks,
                batch_type=options.type,
                auto_finalize=True,
                min_wait_num=options.min_wait_num,
            )
            submitted.append(batch_id)
            view = {"batch_id": batch_id, "tasks": len(tasks), "state": "submitted"}
            _report(view, as_json=options.json)
        if not options.wait:
            return 0
        views = [await wait_closed(bus, batch_id, None) for batch_id in submitted]
    for view in views:
        _report(view, as_json=options.json)
    return max(map(exit_code, views))


def _batches(options: argparse.Namespace, template: Task, *, split: bool) -> Iterator[Batch]:
    """``<id>`` for a single batch, ``<id>-0``, ``<id>-1``, ... for several."""
    from explorer_mq.cli.rows import chunked, read_tasks

    tasks = read_tasks(options.file, template)
    for number, chunk in enumerate(chunked(tasks, options.batch_size)):
        name = f"{options.batch_id}-{number}" if split else options.batch_id
        yield parse_batch_id(name), chunk


def _count_rows(file: Path, template: Task) -> int:
    from explorer_mq.cli.rows import read_tasks

    rows = sum(1 for _ in read_tasks(file, template))
    if rows == 0:
        raise ConfigError(f"{file} has no rows; nothing was submitted")
    return rows


def _template(options: argparse.Namespace) -> Task:
    """What all tasks of the call have in common."""
    from explorer_mq_schemas.tasks import GenerationConfig, Task

    sampling = {
        name: value
        for name in ("temperature", "max_tokens")
        if (value := getattr(options, name)) is not None
    }
    return Task(
        workflow=options.workflow,
        reward_fn=options.reward or _DEFAULT_REWARDS.get(options.workflow),
        repeat_times=options.repeat,
        pool=options.pool,
        is_eval=options.type == "eval",
        format_args={"prompt_key": options.prompt_key, "response_key": options.response_key},
        rollout_args=GenerationConfig.validate_fields(sampling),
    )


def _report(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    metrics = view.get("metrics", {})
    print_fields({f"batch {view['batch_id']}": view["state"], **metrics})


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.jsonl", help="one JSON object a line")
    add(
        "--batch-id", required=True, help="unique within the run; split batches are ID-0, ID-1, ..."
    )
    add("--batch-size", type=_positive, metavar="N", help="tasks a batch; default all in one")
    add("--type", choices=("train", "eval"), default="train", help="default train")
    add("--workflow", default="single_turn", metavar="NAME", help="default single_turn")
    add("--reward", metavar="NAME", help="default exact_match for single_turn")
    add("--repeat", type=_positive, default=1, metavar="N", help="runs a task (default 1)")
    add("--prompt-key", default="prompt", metavar="KEY", help="default prompt")
    add("--response-key", default="answer", metavar="KEY", help="default answer")
    add("--pool", default="default", help="pool of workers (default default)")
    add("--temperature", type=float, help="default 1.0; 0 is greedy")
    add("--max-tokens", type=_positive, metavar="N", help="new tokens a completion")
    add("--min-wait-num", type=_positive, metavar="N", help="settled tasks that suffice")
    add("--wait", action="store_true", help="wait for the batches; exit 1 if runs failed")
    json_option(parser)


COMMANDS = (
    Command(
        name="submit",
        summary="submit the rows of a JSONL file as batches",
        run=_submit,
        sections=("nats",),
        arguments=_arguments,
    ),
)
