"""Plug-ins by module, file and entry point, and what is said when there is none."""

from __future__ import annotations

import json

import pytest

from explorer_mq import plugins
from explorer_mq_schemas.errors import ConfigError

REWARDS = "explorer_mq.rewards"


def test_load_finds_an_attribute_when_named_by_module():
    assert plugins.load("json:dumps", REWARDS) is json.dumps


def test_load_follows_dots_when_the_attribute_is_nested():
    assert plugins.load("json:JSONEncoder.encode", REWARDS) is json.JSONEncoder.encode


def test_load_finds_an_entry_point_when_there_is_no_colon():
    assert {"exact_match", "partial_match"} <= set(plugins.names(REWARDS))
    assert callable(plugins.load("exact_match", REWARDS))


def test_load_runs_a_file_once_when_asked_twice(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Workflow:\n    pass\n")
    first = plugins.load(f"{file}:Workflow", "explorer_mq.workflows")
    assert plugins.load(f"{file}:Workflow", "explorer_mq.workflows") is first


def test_load_tries_a_file_again_when_its_import_failed(tmp_path):
    file = tmp_path / "late.py"
    file.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(ConfigError, match=r"late\.py cannot be imported: RuntimeError: not yet"):
        plugins.load(f"{file}:reward", REWARDS)
    file.write_text("def reward(task, answer):\n    return 1.0\n")
    assert plugins.load(f"{file}:reward", REWARDS)(None, "") == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exact_mach", r"no plug-in 'exact_mach' .*did you mean 'exact_match'\?; installed: "),
        ("nowhere:reward", r"no module 'nowhere' .*searched .*installed packages; .*PYTHONPATH"),
        ("json.nowhere:reward", r"no module 'json\.nowhere'"),
        ("json:dump_s", r"'json' has no attribute 'dump_s'; did you mean 'dumps'\?"),
        ("json:", r"write module:attr"),
        (":reward", r"write module:attr"),
    ],
)
def test_load_says_what_is_missing_when_a_name_is_wrong(name, message):
    with pytest.raises(ConfigError, match=message):
        plugins.load(name, REWARDS)


def test_load_names_the_nearest_file_when_a_file_is_missing(tmp_path):
    (tmp_path / "rewards.py").write_text("")
    with pytest.raises(ConfigError, match=r"no file .*reward\.py; did you mean 'rewards\.py'"):
        plugins.load(f"{tmp_path}/reward.py:f", REWARDS)


def test_load_blames_the_module_when_one_of_its_own_imports_is_missing(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"module 'needs_more' cannot be imported: .*anywhere"):
        plugins.load("needs_more:f", REWARDS)
