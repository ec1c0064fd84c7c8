"""``doctor``: is this host ready, and what to do where it is not."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from explorer_mq.cli.command import Command, Invocation, json_option
from explorer_mq.cli.output import print_json

if TYPE_CHECKING:
    from explorer_mq.cli.checks.check import Check
    from explorer_mq.settings import Settings

AREAS = ("host", "engine", "nats")


def _doctor(invocation: Invocation) -> int:
    settings = invocation.settings
    failed = False
    for area in invocation.options.only or AREAS:
        for check in _CHECKS[area](settings):
            failed |= check.verdict == "fail"
            _report(check, as_json=invocation.options.json)
    return 1 if failed else 0


def _host(settings: Settings) -> Iterator[Check]:
    from explorer_mq.cli.checks import host

    yield host.python_version()
    yield host.open_files()
    yield host.disk_space(settings.server.store_dir)
    yield host.server_binary()


def _engine(_: Settings) -> Iterator[Check]:
    from explorer_mq.cli.checks import engine

    yield engine.torch_imports()
    yield engine.vllm_imports()


def _nats(settings: Settings) -> Iterator[Check]:
    from explorer_mq.cli.checks.server import nats_checks

    yield from asyncio.run(nats_checks(settings))


_CHECKS: dict[str, Callable[[Settings], Iterator[Check]]] = {
    "host": _host,
    "engine": _engine,
    "nats": _nats,
}


def _report(check: Check, *, as_json: bool) -> None:
    """Each check at once, since the engine's take a while."""
    if as_json:
        print_json(asdict(check))
        return
    remedy = f"\n     {'':<12} -> {check.remedy}" if check.verdict != "ok" else ""
    sys.stdout.write(f"{check.verdict:<4} {check.name:<12} {check.found}{remedy}\n")
    sys.stdout.flush()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", action="append", choices=AREAS, help="check this area alone; may be repeated"
    )
    json_option(parser)


COMMANDS = (
    Command(
        name="doctor",
        summary="check host, engine and NATS; exit 1 when something fails",
        run=_doctor,
        sections=("nats", "server"),
        arguments=_arguments,
    ),
)
