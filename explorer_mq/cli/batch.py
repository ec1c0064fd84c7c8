"""``batch ls/show/wait/abort``: the batches of a run."""

from __future__ import annotations

import argparse
import math
from typing import Any

from explorer_mq.cli.ask import FINAL_STATES, ask, connected, parse_batch_id, run_async, wait_closed
from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_fields, print_json, print_table
from explorer_mq_schemas.errors import NotFound

_COLUMNS = ("batch", "type", "state", "tasks", "runs", "failed", "experiences", "reason")


def describe(view: dict[str, Any], *, as_json: bool) -> None:
    """Print one batch: all fields, or the statuses of its tasks as a count."""
    if as_json:
        print_json(view)
        return
    shown = {name: value for name, value in view.items() if name not in _HIDDEN}
    shown |= {f"metrics {name}": value for name, value in view.get("metrics", {}).items()}
    shown |= {f"task {s.get('task_id', i)}": s["message"] for i, s in enumerate(_failed(view))}
    print_fields(shown)


def exit_code(view: dict[str, Any]) -> int:
    """0 for a batch whose runs were all delivered; 1 if some failed, it was aborted, or is open."""
    metrics = view.get("metrics", {})
    failed = any(value for name, value in metrics.items() if name.endswith("/failed_runs"))
    return 0 if view["state"] == "finalized" and not failed else 1


_HIDDEN = frozenset(("schema_version", "statuses", "metrics"))


def _failed(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [status for status in view.get("statuses", ()) if status.get("message")]


def _ls(invocation: Invocation) -> int:
    views: list[dict[str, Any]] = ask(invocation, "batches")
    wanted = invocation.options.state
    views = [view for view in views if wanted in (None, view["state"])]
    if invocation.options.json:
        for view in views:
            print_json(view)
    else:
        print_table(_COLUMNS, map(_row, views))
    return 0


def _row(view: dict[str, Any]) -> tuple[Any, ...]:
    """Open batches show progress, closed ones their result."""
    settled, tasks = view.get("settled_tasks"), view.get("tasks")
    done, runs = view.get("completed_runs"), view.get("runs")
    return (
        view["batch_id"],
        view["batch_type"],
        view["state"],
        f"{view['finished_task_count'] if settled is None else settled}/{tasks}",
        None if runs is None else f"{done}/{runs}",
        view.get("failed_runs"),
        view.get("experiences"),
        view.get("reason", ""),
    )


def _show(invocation: Invocation) -> int:
    batch_id = parse_batch_id(invocation.options.batch)
    describe(ask(invocation, "batch", batch_id=batch_id), as_json=invocation.options.json)
    return 0


def _wait(invocation: Invocation) -> int:
    options = invocation.options

    async def wait() -> dict[str, Any]:
        async with connected(invocation.settings) as bus:
            return await wait_closed(bus, parse_batch_id(options.batch), options.timeout_s)

    view = run_async(invocation, wait())
    describe(view, as_json=options.json)
    return exit_code(view)


def _finalize(invocation: Invocation) -> int:
    options = invocation.options
    batch_id = parse_batch_id(options.batch)

    async def finalize() -> dict[str, Any]:
        from explorer_mq.coordinator_actor import CoordinatorHandle

        async with connected(invocation.settings) as bus:
            handle = CoordinatorHandle(bus)
            found = await handle.finalize(batch_id, timeout=options.timeout_s)
            return found.model_dump(mode="json")

    view = run_async(invocation, finalize())
    describe(view, as_json=options.json)
    return exit_code(view)


def _abort(invocation: Invocation) -> int:
    options = invocation.options
    batch_id = parse_batch_id(options.batch)
    result = ask(
        invocation,
        "abort_batch",
        batch_id=batch_id,
        reason=options.reason,
        keep_partial_results=options.keep_partial,
    )
    if result is None:
        view = ask(invocation, "batch", batch_id=batch_id)
        state = view["state"]
        tail = "nothing to abort" if state in FINAL_STATES else "try again"
        raise NotFound(f"batch {options.batch!r} is {state}; {tail}")
    describe(result, as_json=options.json)
    return 0


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    states = ("pending", "running", "finalizing", "finalized", "aborted")
    parser.add_argument("--state", choices=states, help="only batches in this state")
    json_option(parser)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("batch", help="id of the batch")
    json_option(parser)


def _wait_arguments(parser: argparse.ArgumentParser) -> None:
    _show_arguments(parser)
    parser.add_argument(
        "--timeout-s", type=seconds, help="give up after this time (exit 1); default never"
    )


def _abort_arguments(parser: argparse.ArgumentParser) -> None:
    _show_arguments(parser)
    parser.add_argument("--reason", required=True, help="why; kept in the journal")
    parser.add_argument(
        "--keep-partial", action="store_true", help="hand the completed runs to the trainers first"
    )


def seconds(text: str) -> float:
    """A time-out from a command line: finite and not negative."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more seconds")
    return value


COMMANDS = (
    Command(
        name="batch ls",
        summary="list the batches of the run",
        run=_ls,
        sections=("nats",),
        arguments=_ls_arguments,
    ),
    Command(
        name="batch show",
        summary="one batch with its failed tasks",
        run=_show,
        sections=("nats",),
        arguments=_show_arguments,
    ),
    Command(
        name="batch wait",
        summary="wait until a batch is closed; exit 1 if runs failed",
        run=_wait,
        sections=("nats",),
        arguments=_wait_arguments,
    ),
    Command(
        name="batch finalize",
        summary="close a batch as soon as it may and hand it to the trainers",
        run=_finalize,
        sections=("nats",),
        arguments=_wait_arguments,
    ),
    Command(
        name="batch abort",
        summary="give a batch up; its results are dropped",
        run=_abort,
        sections=("nats",),
        arguments=_abort_arguments,
    ),
)
