"""``worker`` runs one; ``worker ls`` lists those of the run."""

from __future__ import annotations

import time
from typing import Any

from explorer_mq.cli.ask import ask
from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_json, print_table

_COLUMNS = (
    "worker",
    "state",
    "pools",
    "busy",
    "policy",
    "tokens",
    "slices",
    "engine",
    "host",
    "up",
)


def _run(invocation: Invocation) -> int:
    from explorer_mq.logs import configure_logging
    from explorer_mq_workers.worker import run_worker

    configure_logging(invocation.settings.log)
    return run_worker(invocation.settings)


def _ls(invocation: Invocation) -> int:
    beats: list[dict[str, Any]] = ask(invocation, "workers")
    if invocation.options.json:
        for beat in beats:
            print_json(beat)
    else:
        print_table(_COLUMNS, map(_row, beats))
    return 0


def _row(beat: dict[str, Any]) -> tuple[Any, ...]:
    policy = beat["policy_version"]
    return (
        beat["worker"],
        beat["state"],
        beat["pools"],
        f"{len(beat['running'])}/{beat['slots']}",
        f"{policy} ({beat['policy_error']})" if beat["policy_error"] else policy,
        beat["generated_tokens"],
        beat["finished_slices"],
        beat["engine"],
        f"{beat['host']}:{beat['pid']}",
        f"{max(0.0, time.time() - beat['started_at']):.0f} s",
    )


RUN = Command(
    name="worker",
    summary="run a worker: lease tasks, generate, score, report",
    run=_run,
    sections=("nats", "worker", "log"),
)
LS = Command(
    name="worker ls",
    summary="list the live workers of the run",
    run=_ls,
    sections=("nats",),
    arguments=json_option,
)
