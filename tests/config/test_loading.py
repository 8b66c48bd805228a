from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config
from apex_zmq.config.sources import Value

from .conftest import refusal

CONFIGS = Path(__file__).parents[2] / "configs"


def test_defaults_load() -> None:
    assert loading.load() == Config()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: str(path.name))
def test_ready_configs_load(path: Path) -> None:
    assert loading.load(path) != Config()


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert loading.load(tmp_path / "empty.yaml") == Config()


def test_settings_missing_from_a_file_keep_their_defaults(tmp_path: Path) -> None:
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
        (
            "env.reward.zzz=1",
            "unknown setting env.reward.zzz;",
            "known: preset, progress, progress_clip, progress_standing, area",
        ),
        ("batch_size=1", "unknown setting batch_size;", "did you mean learner.batch_size?"),
        ("actor.batch_size=1", "unknown setting actor.batch_size;", "did you mean learner.batch_size?"),
        ("zzz.qqq=1", "unknown setting zzz.qqq;", "known: run, env,"),
        ("learner={lr: 1}", "unknown setting learner.lr;", "known: device, threads"),
    ],
)
def test_unknown_settings_are_refused(override: str, named: str, remedy: str) -> None:
    message = refusal(lambda: loading.load(overrides=[override]))
    assert message.startswith(f"--set: {named}")
    assert remedy in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("env=5", "env is a section; wanted its settings, such as env.id, got 5"),
        ("learner=null", "learner is a section; wanted its settings, such as learner.device, got null"),
        ("learner.batch_size=many", 'wanted int >= 1 and <= 65,536, got "many"'),
        ("learner.batch_size=0", "wanted int >= 1 and <= 65,536, got 0"),
        ("learner.batch_size=1.5", "wanted int >= 1 and <= 65,536, got 1.5"),
        ("learner.double=maybe", 'wanted bool, got "maybe"'),
        ("learner.loss=l1", 'wanted l2 or huber, got "l1"'),
        ("env.actions=FLY", 'wanted RIGHT_ONLY or SIMPLE_MOVEMENT or COMPLEX_MOVEMENT or [[str, ...], ...], got "FLY"'),
        ("env.actions=[right]", 'got ["right"]; write a list such as [[right]]'),
        ("env.stages=1-2", 'wanted all or [str, ...] length >= 1, got "1-2"; write a list such as [1-2]'),
        ("env.stages=[]", "wanted all or [str, ...] length >= 1, got []"),
        ("env.lives=2", "wanted 1 or 3, got 2"),
        ("env.reward.death=.nan", "wanted float, got NaN"),
        ("learner.learning_rate=.inf", "wanted float > 0, got Infinity"),
        ("learner.learning_rate=.nan", "wanted float > 0, got NaN"),
        ("learner.learning_rate=0", "wanted float > 0, got 0"),
        ("agent.gamma=1.01", "wanted float >= 0 and <= 1, got 1.01"),
        ("agent.n_step=65", "wanted int >= 1 and <= 64, got 65"),
        ("actor.repeat_zeta=1", "wanted float > 1 or null, got 1"),
        ("run.seed=-1", "wanted int >= 0 and"),
        ("run.seed=9223372036854775808", "<= 9,223,372,036,854,775,807, got 9223372036854775808"),
        ("run.dir={a: 1}", 'wanted str or null, got {"a": 1}'),
        ("replay.tolerance=0", "wanted float > 0 or null, got 0"),
        ("addresses.experience=[]", "wanted [str, ...] length >= 1, got []"),
        ("addresses.batches=[]", "wanted str or [str, ...] length >= 1, got []"),
        ("telemetry.status_interval_s=1e10", "wanted float > 0 and <= 1,000,000,000.0, got 10000000000"),
    ],
)
def test_wrong_types_and_impossible_values_are_refused(override: str, expected: str) -> None:
    message = refusal(lambda: loading.load(overrides=[override]))
    assert message.startswith(f"--set: {override.partition('=')[0]}")
    assert expected in message


def test_error_names_the_source_of_the_effective_value(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("learner:\n  loss: l1\nagent:\n  n_step: 40\n")
    assert refusal(lambda: loading.load(path)).startswith(f"{path} line 2: learner.loss: wanted l2 or huber")
    corrected = ["learner.loss=l2", "actor.segment_length=20"]
    assert refusal(lambda: loading.load(path, corrected)).endswith(
        f"(agent.n_step from {path} line 4, actor.segment_length from --set)"
    )


def test_section_override_changes_only_named_settings(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("learner: {loss: l2}\n")
    loaded = loading.load(tmp_path / "some.yaml", ["learner={batch_size: 64}"])
    assert (loaded.learner.loss, loaded.learner.batch_size) == ("l2", 64)


def test_typed_values_are_used_unchanged() -> None:
    assert loading.resolve([Value("replay.alpha", 0.7, "--alpha")]).replay.alpha == 0.7


def test_overrides_replace_file_values_and_last_override_wins(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("learner: {batch_size: 64, loss: l2}\n")
    loaded = loading.load(
        tmp_path / "some.yaml",
        ["learner.batch_size=32", "learner.batch_size = 16", "env.reward.death=-1", "run.max_minutes=null"],
    )
    assert (loaded.learner.batch_size, loaded.learner.loss) == (16, "l2")
    assert loaded.env.reward.death == -1
    assert loaded.run.max_minutes is None


def test_numbers_that_yaml_reads_as_strings_are_numbers() -> None:
    assert loading.load(overrides=["learner.learning_rate=5e-4"]).learner.learning_rate == 5e-4


@pytest.mark.parametrize("path", [None, *sorted(CONFIGS.glob("*.yaml"))], ids=lambda path: str(path and path.name))
def test_yaml_round_trip(path: Path | None, tmp_path: Path) -> None:
    loaded = loading.load(path)
    (tmp_path / "resolved.yaml").write_text(loading.to_yaml(loaded))
    assert loading.load(tmp_path / "resolved.yaml") == loaded
    assert loading.from_tree(json.loads(json.dumps(settings.to_tree(loaded))), "checkpoint") == loaded


def test_replace_changes_named_settings_and_validates() -> None:
    changed = loading.replace(Config(), {"env.noop_max": 0, "env.reward.death": -1.0})
    assert (changed.env.noop_max, changed.env.reward.death) == (0, -1.0)
    assert loading.replace(changed, {"env.noop_max": 30, "env.reward.death": -3.0}) == Config()
    assert "agent.n_step 64 exceeds" in refusal(lambda: loading.replace(Config(), {"agent.n_step": 64}))


def test_importing_loading_imports_no_heavy_package() -> None:
    program = "import sys, apex_zmq.config.loading; print(*{'torch', 'numba', 'zmq', 'numpy'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
