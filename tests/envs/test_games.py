"""Settings of the Mario games against what the games have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apex_zmq.cli import main
from apex_zmq.config import loading
from apex_zmq.envs import games
from apex_zmq.envs.games import RIGHT, A, B, check_env
from apex_zmq.envs.make import env_spec, make_lanes
from apex_zmq.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["env.max_pool=true", "env.frame_skip=1"],
            "env.max_pool takes two frames of a decision; raise env.frame_skip",
        ),
        (["env.stages=[1-1, 9-1]"], "env.stages: no stage '9-1' in SuperMarioBros; stages run from 1-1 to 8-4"),
        (
            ["env.id=SuperMarioBros2", "env.stages=[4-4, 5-1]"],
            "env.stages: no stage '5-1' in SuperMarioBros2; stages run from 1-1 to 4-4",
        ),
        (["env.stages=[all]"], "no stage 'all'"),
        (["env.stages=[1-5]"], "no stage '1-5'"),
        (["env.stages=['11']"], "no stage '11'"),
        (["env.stages=[1-1-1]"], "no stage '1-1-1'"),
        (["env.actions=[]"], "env.actions: list at least one action, such as [right]"),
        (["env.actions=[[]]"], "env.actions: [] names no button; buttons are A B NOOP"),
        (["env.actions=[[right, jump]]"], "env.actions: ['right', 'jump'] names jump; buttons are A B NOOP"),
    ],
)
def test_settings_that_a_game_does_not_have_are_refused(overrides: list[str], expected: str) -> None:
    env = loading.load(overrides=overrides).env
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_env(env),
        lambda: env_spec(env),
        lambda: make_lanes(env, 1, 0),
    )
    for check in checks:
        with pytest.raises(ConfigError) as error:
            check()
        assert expected in str(error.value)


def test_settings_that_a_game_has_are_accepted() -> None:
    check_env(loading.load(overrides=["env.stages=all", "env.lives=3"]).env)
    check_env(
        loading.load(overrides=["env.stages=[1-1, 8-4]", "env.actions=[[NOOP], [right, left, up, down, A, B]]"]).env
    )
    check_env(loading.load(overrides=["env.max_pool=true", "env.frame_skip=2"]).env)


def test_stages_and_buttons_are_checked_for_mario_only() -> None:
    check_env(loading.load(overrides=["env.id=CartPole-v1", "env.stages=[9-9]", "env.actions=[]"]).env)


@pytest.mark.parametrize("program", [main.actor, main.replay, main.learner, main.train])
def test_every_program_refuses_unknown_stages_at_start(
    program: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["--run-dir", str(tmp_path / "run")] if program in (main.learner, main.train) else []
    assert program([*run, "--set", "env.stages=[9-1]"]) == 2
    shown = capsys.readouterr().err
    assert "no stage '9-1' in SuperMarioBros; stages run from 1-1 to 8-4 (env.stages from --set)" in shown
    assert not (tmp_path / "run").exists()


def test_action_sets_match_nes_py() -> None:
    right_only = (0, RIGHT, RIGHT + A, RIGHT + B, RIGHT + A + B)
    assert games.action_buttons("RIGHT_ONLY") == right_only
    assert games.action_buttons("SIMPLE_MOVEMENT") == (*right_only, 1, 64)
    assert games.action_buttons("COMPLEX_MOVEMENT") == (*right_only, 1, 64, 65, 66, 67, 32, 16)
    assert games.action_buttons((("right", "right", "B"), ("NOOP",))) == (130, 0)
