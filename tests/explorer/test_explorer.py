"""The explorer against a real server: traces of the sync styles, evals, resume, rows once."""

from __future__ import annotations

import asyncio

import pytest

from explorer_mq.explorer import Explorer
from explorer_mq.monitors.rows import read_rows
from explorer_mq_schemas.errors import BatchTimeout, ConfigError, NotFound


def rows(settings):
    return read_rows(settings.monitors.dir / settings.run / "metrics.jsonl")


def short(actions):
    names = {"submit": "s", "evaluate": "e", "finalize": "f", "finalize_evals": "fe", "sync": "y"}
    return " ".join(names[name] + step for name, step in map(str.split, actions))


@pytest.mark.parametrize(
    ("rules", "steps", "wanted"),
    [
        ({"policy": "on_policy"}, 3, "s1 f1 y1 s2 f2 y2 s3 f3 y3"),
        ({"policy": "one_step_off"}, 3, "s1 s2 f1 f2 y2 s3 f3 y3"),
        ({"sync_interval": 2}, 4, "s1 s2 f1 f2 y2 s3 s4 f3 f4 y4"),
        ({"sync_interval": 2, "sync_offset": 1}, 5, "s1 s2 s3 f1 f2 f3 y3 s4 s5 f4 f5 y5"),
        ({"sync_style": "fully_async", "max_inflight_batches": 1}, 3, "s1 f1 s2 f2 s3 f3"),
        ({"policy": "fully_async"}, 4, "s1 s2 f1 s3 f2 s4 f3 f4"),
        ({"sync_style": "trainer_driven"}, 2, "s1 f1 y1 s2 f2 y2"),
        ({"sync_style": "explorer_driven"}, 2, "s1 f1 y1 s2 f2 y2"),
    ],
)
async def test_trace_of_style(make_settings, start_explorer, worker, trainer, rules, steps, wanted):
    settings = make_settings(total_steps=steps, **rules)
    async with start_explorer(settings) as explorer:
        await asyncio.wait_for(explorer.explore(), 60)
        assert short(explorer.actions) == wanted
        assert explorer.is_alive()
    found = [row for row in rows(settings) if row["kind"] == "metrics"]
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    assert all(row["rollout/finished_task_count"] == 2 for row in found)


async def test_steps_are_sampled_with_the_weights_the_style_promises(
    make_settings, start_explorer, worker, trainer
):
    settings = make_settings(total_steps=4, policy="on_policy")
    async with start_explorer(settings) as explorer:
        await asyncio.wait_for(explorer.explore(), 60)
        versions = [
            live.state.opening.note["explorer"]["version"]
            for live in explorer.coordinator.scheduler.batches.closed()
        ]
    assert versions == [0, 1, 2, 3]
    assert trainer == [1, 2, 3, 4]


async def test_every_eval_is_logged(make_settings, start_explorer, worker, trainer):
    settings = make_settings(evals=True, total_steps=4, eval_interval=1, sync_offset=3)
    async with start_explorer(settings) as explorer:
        await asyncio.wait_for(explorer.explore(), 60)
    for name in ("one", "two"):
        found = [row for row in rows(settings) if row["kind"] == f"eval/{name}"]
        assert [row["step"] for row in found] == [0, 1, 2, 3, 4]
        assert f"eval/{name}/m/mean@2" in found[0]


@pytest.mark.parametrize("selector", ["sequential", "shuffle", "random", "difficulty_based"])
@pytest.mark.parametrize("policy", ["on_policy", "fully_async"])
async def test_run_that_is_cut_off_anywhere_goes_on_as_if_it_had_not_been(
    make_settings, start_explorer, worker, trainer, connect, selector, policy
):
    train = {"selector": selector}
    if selector == "difficulty_based":
        train |= {"selector_args": {"feature_keys": ["low", "high"]}}
    settings = make_settings(evals=True, total_steps=6, eval_interval=2, policy=policy, train=train)
    actions = []
    for _ in range(100):
        async with start_explorer(settings) as explorer:
            more = True
            for _ in range(3):
                more = more and await asyncio.wait_for(explorer.explore_step(), 30)
            actions += explorer.actions
            if not more:
                break
    notes = [
        live.state.opening.note["explorer"]
        for live in explorer.coordinator.scheduler.batches.closed()
    ]
    assert [note["step"] for note in notes if "step" in note] == [1, 2, 3, 4, 5, 6]
    for name in ("submit", "evaluate"):
        done = [one for one in actions if one.startswith(f"{name} ")]
        assert len(done) == len(set(done))
    found = [row["step"] for row in rows(settings) if row["kind"] == "metrics"]
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    for name in ("one", "two"):
        evals = [row["step"] for row in rows(settings) if row["kind"] == f"eval/{name}"]
        assert sorted(evals) == [0, 2, 4, 6]


async def test_trainer_that_never_comes_is_named(make_settings, start_explorer, worker):
    settings = make_settings(total_steps=2, sync_timeout_s=0.3)
    async with start_explorer(settings) as explorer:
        with pytest.raises(BatchTimeout, match=r"trainer trainer \(not_started\)"):
            await explorer.explore()
        assert short(explorer.actions) == "s1 f1"


async def test_run_without_task_sets_is_refused(bus, make_settings, connect):
    settings = make_settings()
    empty = settings.explorer.model_copy(update={"tasksets": ()})
    explorer = Explorer(await connect(), settings.model_copy(update={"explorer": empty}))
    await explorer.prepare()
    with pytest.raises(ConfigError, match=r"explorer\.tasksets"):
        await explorer.explore()
    await explorer.shutdown()


async def test_weights_can_be_read_back(make_settings, start_explorer, worker, trainer):
    async with start_explorer(make_settings(total_steps=1)) as explorer:
        with pytest.raises(NotFound, match="no published policy"):
            await explorer.get_weight("w")
        await asyncio.wait_for(explorer.explore(), 30)
        assert (await explorer.get_weight("w")).tolist() == [1.0, 1.0]
        with pytest.raises(NotFound, match="no tensor 'x'"):
            await explorer.get_weight("x")
