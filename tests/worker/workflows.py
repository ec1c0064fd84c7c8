"""Workflows of the worker's tests, one verb each."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np

from explorer_mq_schemas.experiences import Experience

gates: dict[str, asyncio.Event] = {}
"""Events by name that workflows wait for and tests set."""

seen: list[str] = []
"""What workflows have to tell."""


def sample():
    return Experience(tokens=np.arange(4), prompt_length=2, logprobs=np.zeros(2), reward=1.0)


async def good(task, model):
    return sample()


async def boom(task, model):
    raise ValueError("boom")


async def hang(task, model):
    await asyncio.Event().wait()


def hang_in_thread(task, model):
    threading.Event().wait()


async def gated(task, model):
    """Go on when the test says so."""
    await gates[task.raw_task["gate"]].wait()
    return sample()


async def noting(task, model):
    """Note a state ten times, 0.1 s apart, without a model call."""
    for number in range(10):
        model.set_workflow_state({"step": number, "odd": {"no": "scalar"}})
        try:
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()
        except TimeoutError:
            continue
    return sample()


async def call_once(task, model):
    """One model call, then wait at the gate."""
    model.set_workflow_state({"phase": "asking"})
    await model.generate_async("hello", n=1)
    model.set_workflow_state({"phase": "waiting"})
    await gates[task.raw_task["gate"]].wait()
    return sample()


async def ask(task, model):
    return (await model.generate_async("hello", n=1))[0].reward or sample()


async def stubborn(task, model):
    """Swallow every cancellation and go on asking, until the test lets go."""
    gate = gates[task.raw_task["gate"]]
    while not gate.is_set():
        try:
            await model.generate_async("hello", n=1)
        except asyncio.CancelledError:
            seen.append("refused")
    return sample()


async def swallow_for_ever(task, model):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def cancel_everybody(task, model):
    for other in asyncio.all_tasks():
        if other.get_name().startswith("attempt "):
            other.cancel()
    await asyncio.Event().wait()


async def counted(task, model):
    """As gated; tells when it begins."""
    seen.append("begun")
    return await gated(task, model)


def until_file(task, model):
    """Blocks until a file exists; in a process, no test can set an event."""
    pause = threading.Event()
    while not Path(task.raw_task["file"]).exists():
        pause.wait(0.02)
    return sample()
