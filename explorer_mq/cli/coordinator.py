"""``coordinator``: the one that owns the batches of a run, explores its task sets, or benchmarks."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_json, print_table


def _coordinator(invocation: Invocation) -> int:
    from explorer_mq.logs import configure_logging
    from explorer_mq.serving import run_coordinator

    configure_logging(invocation.settings.log)
    if invocation.options.mode == "bench":
        return _bench(invocation)
    return run_coordinator(invocation.settings, standby=invocation.options.standby)


def _bench(invocation: Invocation) -> int:
    """One row a checkpoint: the metrics that all of them have."""
    from explorer_mq.serving import run_benchmark

    scores = run_benchmark(invocation.settings)
    if invocation.options.json:
        for score in scores:
            print_json(asdict(score))
        return 0
    shared = [key for key in scores[0].metrics if all(key in one.metrics for one in scores)]
    shown = [key for key in shared if "/mean@" in key or key.endswith("finished_task_count")]
    rows = [
        (one.checkpoint, one.policy_version, *(f"{one.metrics[key]:.4g}" for key in shown))
        for one in scores
    ]
    print_table(("checkpoint", "policy", *(key.removeprefix("bench/") for key in shown)), rows)
    return 0


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--standby",
        action="store_true",
        help="wait until the run's coordinator ends, then take over",
    )
    parser.add_argument(
        "--mode",
        choices=("explore", "bench"),
        default="explore",
        help="explore: submitted batches and explorer.tasksets; bench: evaluate checkpoints, then end",
    )
    json_option(parser)


COMMANDS = (
    Command(
        name="coordinator",
        summary="run the coordinator of a run; explores explorer.tasksets if there are any",
        run=_coordinator,
        sections=("nats", "streams", "scheduler", "explorer", "monitors", "log"),
        arguments=_arguments,
    ),
)
