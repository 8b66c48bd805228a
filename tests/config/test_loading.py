from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.replay.governor import Governor

CONFIGS = Path(__file__).parents[2] / "configs"
TWO_SHARDS = [
    "replay.shards=2",
    "addresses.experience=[tcp://127.0.0.1:1, tcp://127.0.0.1:2]",
    "addresses.priorities=[tcp://127.0.0.1:3, tcp://127.0.0.1:4]",
]


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_defaults_load() -> None:
    assert loading.load() == Config()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: str(path.name))
def test_the_configs_that_come_along_load(path: Path) -> None:
    assert loading.load(path) != Config()


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert loading.load(tmp_path / "empty.yaml") == Config()


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("learner:\n  batch_size: 64\nenv:\n  reward:\n    death: -7\n")
    loaded = loading.load(tmp_path / "some.yaml")
    assert (loaded.learner.batch_size, loaded.env.reward.death) == (64, -7.0)
    assert loaded.learner.learning_rate == Config().learner.learning_rate
    assert loaded.env.reward.clear == Config().env.reward.clear


@pytest.mark.parametrize(
    ("override", "named", "remedy"),
    [
        ("lerner=1", "unknown setting lerner;", "did you mean learner?"),
        ("learner.batchsize=1", "unknown setting learner.batchsize;", "did you mean learner.batch_size?"),
        ("env.reward.deaths=1", "unknown setting env.reward.deaths;", "did you mean env.reward.death?"),
        ("env.reward.zzz=1", "unknown setting env.reward.zzz;", "known: preset, progress, progress_clip, time, death"),
        ("=1", "unknown setting ;", "known: run, env,"),
        ("run.dir", "--set run.dir:", "write section.key=value"),
        ("run.dir=[", "--set run.dir=[:", "not valid YAML"),
    ],
)
def test_unknown_settings_and_bad_overrides_are_refused(override: str, named: str, remedy: str) -> None:
    message = refusal(lambda: loading.load(overrides=[override]))
    assert named in message
    assert remedy in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("env=5", "`object`, got `int`"),
        ("learner.batch_size=many", "`int`, got `str`"),
        ("learner.batch_size=0", "`int` >= 1"),
        ("learner.batch_size=1.5", "`int`, got `float`"),
        ("learner.double=maybe", "`bool`, got `str`"),
        ("learner.loss=l1", "enum value 'l1'"),
        ("env.actions=FLY", "enum value 'FLY'"),
        ("env.actions=[right]", "`array`, got `str`"),
        ("env.stages=1-1", "enum value '1-1'"),
        ("env.stages=[]", "length >= 1"),
        ("env.lives=2", "enum value 2"),
        ("env.reward.death=.nan", "`float`"),
        ("learner.learning_rate=.inf", "`float` <="),
        ("learner.learning_rate=.nan", "`float` > 0"),
        ("learner.learning_rate=0", "`float` > 0"),
        ("agent.gamma=1.01", "`float` <= 1"),
        ("agent.n_step=65", "`int` <= 64"),
        ("actor.repeat_zeta=1", "`float` > 1"),
        ("run.seed=-1", "`int` >= 0"),
        ("run.seed=9223372036854775808", "`int`"),
        ("run.dir={a: 1}", "`str | null`, got `object`"),
        ("replay.tolerance=0", "`float` > 0"),
        ("addresses.experience=[]", "length >= 1"),
        ("addresses.batches=[]", "length >= 1"),
        ("telemetry.status_interval_s=1e10", "`float` <= 1000000000.0"),
    ],
)
def test_wrong_types_and_impossible_values_are_refused(override: str, expected: str) -> None:
    name = override.partition("=")[0]
    message = refusal(lambda: loading.load(overrides=[override]))
    assert message.startswith(f"settings: {name}")
    assert expected in message
    assert message.endswith("see --help for its type")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["actor.segment_length=2"], "agent.n_step 3 exceeds actor.segment_length 2; lengthen segments"),
        (
            ["replay.capacity=400"],
            "learner.batch_size 512 exceeds the 400 transitions of a shard; raise replay.capacity",
        ),
        (
            ["replay.capacity=60", "learner.batch_size=1", "actor.segment_length=64"],
            "actor.segment_length 64 exceeds the 60 transitions of a shard; raise replay.capacity",
        ),
        (
            [*TWO_SHARDS, "replay.capacity=1000", "learner.batch_size=501"],
            "learner.batch_size 501 exceeds the 500 transitions of a shard; raise replay.capacity",
        ),
        (["replay.min_size=2000000"], "replay.min_size 2000000 does not fit replay.capacity 1000000"),
        (["replay.min_size=999990"], "does not fit replay.capacity 1000000 with a segment to spare; lower it"),
        (["replay.samples_per_insert=4", "replay.tolerance=9"], "replay.tolerance 9 can deadlock: 2 x tolerance must"),
        (["replay.shards=2"], "addresses.experience lists 1 addresses for replay.shards 2; list one per shard"),
        (
            [*TWO_SHARDS, "addresses.priorities=[tcp://127.0.0.1:3]"],
            "addresses.priorities lists 1 addresses for replay.shards 2; list one per shard",
        ),
        (["addresses.batches=host"], "address host: write tcp://host:port"),
        (["addresses.batches=tcp://host"], "address tcp://host: write tcp://host:port"),
        (["addresses.batches=[tcp://host:1, tcp://host]"], "address tcp://host: write tcp://host:port"),
        (["addresses.status=tcp://:1"], "address tcp://:1: write tcp://host:port"),
        (["addresses.status=tcp://host:0"], "(port 1 to 65535)"),
        (["addresses.status=tcp://host:65536"], "(port 1 to 65535)"),
        (["addresses.status=tcp://host:²"], "(port 1 to 65535)"),
        (["addresses.status=tcp://[::1]:5555"], "the links speak IPv4; write a host's name"),
        (["addresses.parameters=udp://host:1"], "write tcp://host:port"),
        (["addresses.parameters=ipc://"], "or ipc:///path"),
        (["addresses.experience=[nowhere]"], "address nowhere: write tcp://host:port"),
        (["addresses.parameters=ipc:///" + "x" * 107], "at most 107 bytes; use a shorter directory"),
    ],
)
def test_combinations_that_cannot_work_are_refused(overrides: list[str], expected: str) -> None:
    assert expected in refusal(lambda: loading.load(overrides=overrides))


def test_the_largest_values_that_work_are_taken() -> None:
    loading.load(overrides=["agent.n_step=32"])
    loading.load(overrides=["replay.capacity=50032"])
    loading.load(overrides=["replay.min_size=999968"])
    loading.load(overrides=["addresses.parameters=ipc:///" + "x" * 106])
    loading.load(overrides=TWO_SHARDS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b\n", "must hold sections (run, env, agent, ...), not a list"),
        (b"learner: [", "is not valid YAML"),
        (b"\x80\x02 a pickle", "is not valid YAML"),
        (b"\x00\x01\x02", "is not valid YAML"),
        (b"learner: 5", "learner: Expected `object`, got `int`; see --help"),
        (b"learner:\n  batchsize: 5", "unknown setting learner.batchsize; did you mean learner.batch_size?"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refusal(lambda: loading.load(path))
    assert str(path) in message
    assert expected in message


def test_a_date_that_is_none_is_no_value() -> None:
    assert "run.dir=2026-02-30: the value is not valid" in refusal(
        lambda: loading.load(overrides=["run.dir=2026-02-30"])
    )


def test_a_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    message = refusal(lambda: loading.load(tmp_path / "none.yaml"))
    assert f"{tmp_path}/none.yaml: No such file" in message
    assert "configs/ holds ready ones" in message
    assert "Is a directory" in refusal(lambda: loading.load(tmp_path))


def test_overrides_win_over_the_file_and_the_last_one_over_others(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("learner: {batch_size: 64, loss: l2}\n")
    loaded = loading.load(
        tmp_path / "some.yaml",
        ["learner.batch_size=32", "learner.batch_size = 16", "env.reward.death=-1", "run.max_minutes=null"],
    )
    assert (loaded.learner.batch_size, loaded.learner.loss) == (16, "l2")
    assert loaded.env.reward.death == -1
    assert loaded.run.max_minutes is None


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    assert loading.load(overrides=["learner.learning_rate=5e-4"]).learner.learning_rate == 5e-4


def test_addresses_from_the_environment_and_from_flags() -> None:
    environ = {
        "APEX_EXPERIENCE": "tcp://a:1,tcp://b:1",
        "APEX_PRIORITIES": "tcp://a:2,tcp://b:2",
        "APEX_BATCHES": "tcp://c:3",
        "APEX_PARAMETERS": "",
        "APEX_OTHER": "nonsense",
    }
    overrides = [*loading.from_environment(environ), loading.address_override("batches", "ipc:///tmp/flag")]
    addresses = loading.load(overrides=["replay.shards=2", *overrides]).addresses
    assert addresses.experience == ("tcp://a:1", "tcp://b:1")
    assert addresses.priorities == ("tcp://a:2", "tcp://b:2")
    assert addresses.batches == "ipc:///tmp/flag"
    assert addresses.parameters == Config().addresses.parameters


def test_an_address_with_yaml_syntax_in_it_stays_one_address() -> None:
    override = loading.address_override("batches", "ipc:///tmp/a: {b} #c")
    assert loading.load(overrides=[override]).addresses.batches == "ipc:///tmp/a: {b} #c"


@pytest.mark.parametrize("path", [None, *sorted(CONFIGS.glob("*.yaml"))], ids=lambda path: str(path and path.name))
def test_yaml_round_trip(path: Path | None, tmp_path: Path) -> None:
    loaded = loading.load(path)
    (tmp_path / "resolved.yaml").write_text(loading.to_yaml(loaded))
    assert loading.load(tmp_path / "resolved.yaml") == loaded
    assert loading.from_tree(json.loads(json.dumps(settings.to_tree(loaded))), "checkpoint") == loaded


def test_replace_changes_what_it_names_and_validates() -> None:
    changed = loading.replace(Config(), {"env.noop_max": 0, "env.reward.death": -1.0})
    assert (changed.env.noop_max, changed.env.reward.death) == (0, -1.0)
    assert loading.replace(changed, {"env.noop_max": 30, "env.reward.death": -3.0}) == Config()
    assert "agent.n_step 64 exceeds" in refusal(lambda: loading.replace(Config(), {"agent.n_step": 64}))


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def test_every_setting_is_described() -> None:
    described = {setting.name: setting for setting in settings.settings()}
    defaults = leaves(yaml.safe_load(loading.to_yaml(Config())))
    assert described.keys() == defaults.keys()
    for name, setting in described.items():
        assert setting.type
        assert setting.description.endswith(".")
        assert (list(setting.default) if isinstance(setting.default, tuple) else setting.default) == defaults[name]


def test_types_are_written_for_people() -> None:
    types = {setting.name: setting.type for setting in settings.settings()}
    assert types["learner.batch_size"] == "int"
    assert types["learner.loss"] == "l2 | huber"
    assert types["run.max_minutes"] == "float | null"
    assert types["env.stages"] == "all | [str, ...]"
    assert types["env.lives"] == "1 | 3"
    assert types["env.actions"] == "RIGHT_ONLY | SIMPLE_MOVEMENT | COMPLEX_MOVEMENT | [[str, ...], ...]"


@given(
    batch=st.integers(1, 64),
    length=st.integers(3, 64),
    per_insert=st.sampled_from([0.25, 0.5, 1.0, 4.5, 8.0]),
    tolerance=st.integers(1, 1200).map(lambda quarters: quarters / 4),
)
@example(batch=8, length=4, per_insert=0.5, tolerance=5.0)
@example(batch=8, length=4, per_insert=0.5, tolerance=4.75)
def test_a_tolerance_is_taken_where_the_governor_cannot_deadlock(
    batch: int, length: int, per_insert: float, tolerance: float
) -> None:
    changes = {
        "learner.batch_size": batch,
        "actor.segment_length": length,
        "replay.samples_per_insert": per_insert,
        "replay.tolerance": tolerance,
    }

    def governor() -> Governor:
        return Governor(
            min_size=1,
            samples_per_insert=per_insert,
            tolerance=tolerance,
            batch_size=batch,
            max_segment=length,
        )

    if 2 * tolerance >= batch + per_insert * length:
        loading.replace(Config(), changes)
        governor()
    else:
        assert "can deadlock" in refusal(lambda: loading.replace(Config(), changes))
        with pytest.raises(ValueError, match="deadlock"):
            governor()
    loading.replace(Config(), changes | {"replay.tolerance": None})
    loading.replace(Config(), changes | {"replay.samples_per_insert": None})


def test_a_tolerance_of_null_is_four_times_batch_and_segment() -> None:
    loaded = loading.load(overrides=["replay.samples_per_insert=2", "learner.batch_size=10", "actor.segment_length=5"])
    assert settings.tolerance(loaded) == 4 * (10 + 2 * 5)
    assert settings.tolerance(loading.replace(loaded, {"replay.tolerance": 33.0})) == 33


def test_shards_share_the_minimum_rounded_up() -> None:
    assert settings.min_size_per_shard(loading.load(overrides=[*TWO_SHARDS, "replay.min_size=1001"])) == 501


def test_importing_it_loads_nothing_heavy() -> None:
    program = "import sys, apex_zmq.config.loading; print(*{'torch', 'numba', 'zmq', 'numpy'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().learner.batch_size = 1  # type: ignore[misc]
