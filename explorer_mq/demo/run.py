"""The demo: a NATS server, a coordinator, vLLM workers and a trainer as separate processes.

Flow: start everything -> per step: submit a batch, wait for it, wait until the trainer's new weights
are held by every worker -> stop everything -> metrics, picture, summary. On-policy: step n is
sampled by the policy that step n - 1 trained.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.embedded import EmbeddedServer
from explorer_mq.bus.topology import wait_ready
from explorer_mq.children import Children
from explorer_mq.coordinator_actor import CoordinatorHandle
from explorer_mq.demo.sorting import task
from explorer_mq.demo.view import View, draw
from explorer_mq.roster import Roster
from explorer_mq.running import run_until_signal
from explorer_mq.settings import Settings
from explorer_mq_schemas.errors import BatchTimeout, TransientError
from explorer_mq_schemas.ids import new_id

_SYNC_S = 60.0
_START_S = 240.0
_WINDOW = 10


def run_demo(settings: Settings, *, json_output: bool = False) -> int:
    """Run the demo; 0 when it came to its end."""
    started = time.monotonic()
    out = settings.demo.out_dir.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run = new_id("demo")
    demo = Demo(settings.model_copy(update={"run": run}), out, quiet=json_output)
    with EmbeddedServer(out / "nats", run=run) as server:
        run_until_signal(lambda stop: demo.play(server.url, stop))
    result = demo.result(time.monotonic() - started)
    if demo.rows:
        draw(demo.rows, out / "reward.png")
        demo.view.summary(result)
        demo.view.say(f"metrics: {out / 'metrics.jsonl'}   picture: {out / 'reward.png'}")
    if json_output:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if len(demo.rows) == settings.demo.steps else 1


class Demo:
    """One demonstration run."""

    def __init__(self, settings: Settings, out: Path, *, quiet: bool) -> None:
        self._settings = settings
        self._out = out
        self.view = View(settings.demo.steps, quiet=quiet)
        self.rows: list[dict[str, Any]] = []
        self._loaded = 0

    async def play(self, url: str, stop: asyncio.Event) -> None:
        """Start the processes, train, stop them; ends early when ``stop`` is set.

        Raises:
            TransientError: a process ended before its time; the message has its last words.
        """
        async with Children(self._out / "logs") as children:
            steps = asyncio.create_task(self._steps(url, children), name="demo")
            stopped = asyncio.create_task(stop.wait(), name="stop")
            try:
                await asyncio.wait((steps, stopped), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.view.close()
                for work in (steps, stopped):
                    work.cancel()
                await asyncio.gather(steps, stopped, return_exceptions=True)
            if not steps.cancelled():
                steps.result()

    def result(self, seconds: float) -> dict[str, Any]:
        """The figures of the run; rewards are means of the first and last ten steps."""
        rows = self.rows
        diffs = [r["logprob_max_abs_diff"] for r in rows if r["logprob_max_abs_diff"] is not None]
        first = [row["reward"] for row in rows[:_WINDOW]]
        last = [row["reward"] for row in rows[-_WINDOW:]]
        return {
            "steps": len(rows),
            "reward_first": sum(first) / max(1, len(first)),
            "reward_last": sum(last) / max(1, len(last)),
            "policy_versions": self._loaded,
            "experiences": sum(row["experiences"] for row in rows),
            "lost": sum(row["lost"] for row in rows),
            "duplicates": sum(row["duplicates"] for row in rows),
            "logprob_max_abs_diff": max(diffs, default=None),
            "seconds": round(seconds, 1),
        }

    async def _steps(self, url: str, children: Children) -> None:
        demo, run = self._settings.demo, self._settings.run
        model = self._out / "model"
        common = ["--run", run, "--nats.url", url, "--log.format", "text"]
        self.view.say(f"run {run}: starting coordinator and trainer")
        await children.start("coordinator", ["explorer_mq", "coordinator", *common])
        trainer_arguments = [run, url, str(model), str(demo.seed), str(demo.steps)]
        trainer = await children.start(
            "trainer", ["explorer_mq.demo.trainer", *trainer_arguments], pipe=True
        )
        assert trainer.stdout is not None
        events = trainer.stdout
        await self._event(events, "model", children)
        self.view.say(f"starting {demo.workers} vLLM worker(s); this takes some 15 s")
        for number in range(demo.workers):
            name = f"worker-{number}"
            engine = ["--worker.engine.model", str(model), "--worker.engine.dtype", "float32"]
            limits = ["--worker.engine.max_model_len", "128", "--worker.slots", str(demo.prompts)]
            seed = ["--worker.engine.seed", str(demo.seed * 100 + number), "--worker.id", name]
            await children.start(name, ["explorer_mq", "worker", *common, *engine, *limits, *seed])
        options = self._settings.nats.model_copy(update={"url": url}).options("demo")
        async with await Bus.connect(run, options) as bus:
            roster = Roster(bus, beat_interval_s=self._settings.worker.beat_interval_s)
            await roster.start()
            await wait_ready(bus, ("default",))
            warm = await self._event(events, "ready", children)
            self.view.say(f"warm-up took {warm['warm_up_steps']} steps; waiting for the workers")
            await self._synced(roster, 1, children, _START_S)
            coordinator = CoordinatorHandle(bus)
            rng = random.Random(demo.seed + 1000)  # noqa: S311 - not for secrets
            with (self._out / "metrics.jsonl").open("w") as log:
                for step in range(1, demo.steps + 1):
                    row = await self._step(step, coordinator, events, rng, roster, children)
                    log.write(json.dumps(row) + "\n")
                    log.flush()
            self._loaded = min(beat.policies_loaded for beat in roster.workers())
            await roster.close()

    async def _step(  # noqa: PLR0917 - the parts of one step
        self,
        step: int,
        coordinator: CoordinatorHandle,
        events: asyncio.StreamReader,
        rng: random.Random,
        roster: Roster,
        children: Children,
    ) -> dict[str, Any]:
        started = time.monotonic()
        demo = self._settings.demo
        tasks = [task(rng, group_size=demo.group_size) for _ in range(demo.prompts)]
        await coordinator.submit_batch(batch_id=step, tasks=tasks)
        queued = (await coordinator.status())["queued_slices"]
        await self._or_exit(coordinator.finalize_train_batch(step, timeout=_SYNC_S), children)
        rollout_s = time.monotonic() - started
        event = await self._event(events, "step", children)
        if step < demo.steps:
            await self._synced(roster, event["version"], children, _SYNC_S)
        row = {
            "step": step,
            "reward": event["reward"],
            "exact": event["exact"],
            "loss": event["loss"],
            "tokens_per_s": event["tokens"] / rollout_s,
            "policy_version": event["version"],
            "staleness": event["staleness"],
            "queued_slices": queued,
            "experiences": event["experiences"],
            "lost": event["lost"],
            "duplicates": event["duplicates"],
            "logprob_max_abs_diff": event["logprob_max_abs_diff"],
            "rollout_s": rollout_s,
            "train_s": event["train_s"],
            "step_s": time.monotonic() - started,
        }
        self.rows.append(row)
        self.view.show(row)
        return row

    async def _synced(
        self, roster: Roster, version: int, children: Children, seconds: float
    ) -> None:
        """Wait until every worker holds ``version``: each confirms it in its beats."""

        async def confirmed() -> None:
            wanted = self._settings.demo.workers
            while True:
                beats = roster.workers()
                if len(beats) >= wanted and all(
                    beat.policy_version >= version and beat.state == "ready" for beat in beats
                ):
                    return
                await roster.changed.wait()

        try:
            async with asyncio.timeout(seconds):
                await self._or_exit(confirmed(), children)
        except TimeoutError as error:
            held = {
                beat.worker: beat.policy_error or beat.policy_version for beat in roster.workers()
            }
            raise BatchTimeout(
                f"policy version {version} is not held by every worker after {seconds:g} s: {held}; "
                f"see {self._out / 'logs'}"
            ) from error

    async def _event(
        self, events: asyncio.StreamReader, wanted: str, children: Children
    ) -> dict[str, Any]:
        line = await self._or_exit(events.readline(), children)
        if not line:
            raise await children.first_exit()
        event: dict[str, Any] = json.loads(line)
        if event["event"] != wanted:
            raise TransientError(f"the trainer said {event['event']!r}, expected {wanted!r}")
        return event

    async def _or_exit(self, work: Any, children: Children) -> Any:
        """The result of ``work``, unless a process ends first."""
        mine = asyncio.ensure_future(work)
        exited = asyncio.create_task(children.first_exit(), name="exits")
        try:
            await asyncio.wait((mine, exited), return_when=asyncio.FIRST_COMPLETED)
            if mine.done():
                return mine.result()
            raise exited.result()
        finally:
            mine.cancel()
            exited.cancel()
            await asyncio.gather(mine, exited, return_exceptions=True)
