"""Settings: precedence, strictness, and messages that name key and origin."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from explorer_mq.settings import (
    Settings,
    SyntheticSettings,
    VllmSettings,
    load_settings,
    reference,
    sources,
)
from explorer_mq.settings.section import Section
from explorer_mq_schemas.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_settings_have_the_documented_defaults_when_nothing_is_given():
    settings = load_settings()
    assert settings == Settings()
    assert settings.run == "default"
    assert settings.worker.engine == VllmSettings()
    assert settings.server.max_payload_bytes == 8 << 20
    assert settings.streams.results_max_age_s == 7 * 86_400
    assert settings.scheduler.batch_deadline_s is None


def test_settings_ignore_the_environment_when_constructed_directly(monkeypatch):
    monkeypatch.setenv("EXPLORER_MQ_RUN", "other")
    assert Settings().run == "default"


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(ValidationError):
        Settings().run = "other"


def test_every_section_is_frozen_and_strict():
    def check(model: type[BaseModel]) -> None:
        assert issubclass(model, Section)
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"
        for child in model.__subclasses__():
            check(child)

    check(Section)


def test_every_setting_has_a_description_and_a_section():
    assert [entry.dotted for entry in reference.entries() if not entry.description] == []
    assert all(reference.sections().values())


def test_layers_win_in_order_when_all_set_the_same_key(tmp_path):
    one = write(tmp_path / "one.toml", "[worker]\nslots = 1\n[trainer]\nprefetch = 1\n")
    two = write(tmp_path / "two.toml", "[worker]\nslots = 2\ndrain_timeout_s = 2\n")
    environ = {"EXPLORER_MQ_WORKER__SLOTS": "3", "EXPLORER_MQ_WORKER__BEAT_INTERVAL_S": "3"}
    assert load_settings([one, two]).worker.slots == 2
    assert load_settings([two, one]).worker.slots == 1
    assert load_settings([one, two], (), environ).worker.slots == 3
    settings = load_settings([one, two], [("worker.slots", "4")], environ)
    assert settings.worker.slots == 4
    assert settings.worker.drain_timeout_s == 2
    assert settings.worker.beat_interval_s == 3
    assert settings.trainer.prefetch == 1


def test_lists_are_replaced_and_tables_merged_when_layers_overlap(tmp_path):
    one = write(
        tmp_path / "one.toml",
        '[worker]\npools = ["a", "b"]\n[worker.engine.extra_args]\nx = 1\nnested = { y = 1 }\n',
    )
    flags = [("worker.pools", '["c"]'), ("worker.engine.extra-args.nested.z", "[1, 2]")]
    settings = load_settings([one], flags)
    assert settings.worker.pools == ("c",)
    assert settings.worker.engine.extra_args == {"x": 1, "nested": {"y": 1, "z": [1, 2]}}


def test_engine_keys_of_the_base_are_dropped_when_an_overlay_changes_the_type(tmp_path):
    base = write(tmp_path / "base.toml", '[worker.engine]\nmodel = "m"\nseed = 7\n')
    flags = [("worker.engine.type", "synthetic"), ("worker.engine.tokens", "3")]
    assert load_settings([base], flags).worker.engine == SyntheticSettings(tokens=3)


def test_engine_keys_of_the_base_are_kept_when_an_overlay_repeats_the_type(tmp_path):
    base = write(tmp_path / "base.toml", '[worker.engine]\nmodel = "m"\n')
    engine = load_settings([base], [("worker.engine.type", "vllm")]).worker.engine
    assert engine == VllmSettings(model="m")


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("run", "007", "007"),
        ("run", "true", "true"),
        ("worker.id", "null", None),
        ("worker.id", '"null"', "null"),
        ("worker.pools", "a, b", ("a", "b")),
        ("worker.slots", "5", 5),
        ("scheduler.batch-deadline-s", "null", None),
        ("scheduler.lease_s", "2.5", 2.5),
        ("server.store-dir", "7", Path("7")),
    ],
)
def test_flag_text_is_read_as_the_setting_needs_it(flag, text, value):
    found = load_settings((), [(flag, text)])
    for part in flag.replace("-", "_").split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("worker.slotz", "1", "--worker.slotz: no such setting; did you mean --worker.slots?"),
        ("slots", "1", "--slots: no such setting; did you mean --worker.slots?"),
        ("worker", "1", "--worker: a section, not a value"),
        ("worker.pools.x", "1", "did you mean --worker.pools?"),
        ("worker.slots", "x", "--worker.slots: expected a whole number (got 'x')"),
        ("worker.slots", "0", "--worker.slots: must be greater than or equal to 1 (got '0')"),
        ("worker.pools", "[]", "--worker.pools: must not be empty"),
        ("scheduler.lease-s", "NaN", "--scheduler.lease-s: expected a finite number"),
        ("worker.concurrent-mode", "async", "'asynchronous', 'sequential' or 'multi-threading'"),
        ("worker.engine.type", "sglang", "must be one of 'vllm', 'synthetic' (got 'sglang')"),
        ("worker.engine.tokens", "1", "no setting of type 'vllm'"),
        ("run", "a.b", "letters, digits"),
        ("nats.url", "http://me:secret@host", "(got 'http://host')"),
    ],
)
def test_bad_flag_is_refused_in_one_line_that_names_it(flag, text, message):
    with pytest.raises(ConfigError) as caught:
        load_settings((), [(flag, text)])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--{flag}: ")
    assert "\n" not in str(caught.value)


def test_bad_key_in_a_file_is_refused_with_file_key_and_nearest(tmp_path):
    file = write(tmp_path / "a.toml", "[worker]\nslot = 3\n")
    with pytest.raises(ConfigError, match=r"a\.toml: worker\.slot: .*did you mean worker\.slots"):
        load_settings([file])


def test_bad_value_is_blamed_on_the_layer_that_set_it(tmp_path):
    good = write(tmp_path / "good.toml", "[worker]\nslots = 3\n")
    bad = write(tmp_path / "bad.toml", "[worker]\nslots = -3\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: worker\.slots: .*got '-3'"):
        load_settings([good, bad])


def test_missing_file_is_refused_with_its_sibling(tmp_path):
    write(tmp_path / "train.toml", "")
    with pytest.raises(
        ConfigError, match=r"trian\.toml does not exist; did you mean .*train\.toml"
    ):
        load_settings([tmp_path / "trian.toml"])


def test_file_that_is_no_toml_is_refused_with_the_line(tmp_path):
    file = write(tmp_path / "a.toml", "run = \n")
    with pytest.raises(ConfigError, match=r"a\.toml cannot be read: .*line 1"):
        load_settings([file])


def test_unknown_variable_with_our_prefix_is_refused():
    with pytest.raises(ConfigError) as caught:
        load_settings((), (), {"EXPLORER_MQ_WROKER__SLOTS": "1", "PATH": "/bin"})
    assert str(caught.value) == (
        "EXPLORER_MQ_WROKER__SLOTS: no such setting; did you mean EXPLORER_MQ_WORKER__SLOTS?"
    )


def test_deeper_variable_wins_when_two_set_the_same_table():
    environ = {
        "EXPLORER_MQ_WORKER__ENGINE__TOKENS": "5",
        "EXPLORER_MQ_WORKER__ENGINE": '{"type": "synthetic", "tokens": 4, "seed": 2}',
    }
    assert load_settings((), (), environ).worker.engine == SyntheticSettings(tokens=5, seed=2)


def test_sources_name_file_variable_and_flag(tmp_path):
    file = write(tmp_path / "a.toml", 'run = "r"\n[worker]\nslots = 3\n')
    found = sources([file], [("worker.slots", "4")], {"EXPLORER_MQ_UP__WORKERS": "2"})
    assert found == {
        "run": str(file),
        "worker.slots": "--worker.slots",
        "up.workers": "EXPLORER_MQ_UP__WORKERS",
    }


def test_bus_options_carry_every_nats_setting():
    settings = load_settings((), [("nats.url", "nats://h:1,nats://h:2"), ("nats.tls-ca-file", "c")])
    options = settings.nats.options("worker/a")
    assert (options.url, options.name) == ("nats://h:1,nats://h:2", "worker/a")
    assert options.tls_ca_file == Path("c")
    for name in ("nkey_seed_file", "credentials_file", "connect_timeout_s", "request_timeout_s"):
        assert getattr(options, name) == getattr(settings.nats, name)


def test_toml_of_config_show_reads_back_as_the_same_settings(tmp_path, capsys):
    from explorer_mq.cli.main import main

    flags = ["--worker.id", 'a"b', "--worker.engine.extra-args.k", '{"x": [1, "y"]}', "--run", "r"]
    assert main(["config", "show", *flags]) == 0
    text = capsys.readouterr().out
    assert tomllib.loads(text)["worker"]["id"] == 'a"b'
    pairs = list(zip((flag[2:] for flag in flags[::2]), flags[1::2], strict=True))
    assert load_settings([write(tmp_path / "a.toml", text)]) == load_settings((), pairs)
