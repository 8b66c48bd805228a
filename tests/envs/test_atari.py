"""The Arcade Learning Environment, whose games come with the atari extra."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from apex_zmq.config import settings
from apex_zmq.envs.atari import AtariPreprocessing
from apex_zmq.envs.interface import EnvError
from apex_zmq.envs.make import env_spec, make_lanes
from apex_zmq.types import FrameSpec

BREAKOUT = settings.Env(id="ALE/Breakout-v5")


class Counting(gymnasium.Env[Any, Any]):
    """The screen's pixel 0 is the frame's number, its pixel 1 is bright in odd frames; a frame earns its number."""

    observation_space = Box(0, 255, (210, 160), np.uint8)
    action_space = Discrete(3)

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.frame, self.actions = 0, list[int]()
        return self.screen(), {}

    def screen(self) -> Any:
        screen = np.zeros((210, 160), np.uint8)
        screen[0, :2] = self.frame, 255 * (self.frame % 2)
        return screen

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.frame += 1
        self.actions.append(action)
        return self.screen(), float(self.frame), self.frame == self.length, False, {}


def test_a_decision_sums_rewards_and_pools_the_last_two_frames() -> None:
    game = Counting(length=10)
    env = AtariPreprocessing(game, frame_skip=4, noop_max=0)
    env.reset(seed=0)
    screen, reward, terminated, _, _ = env.step(2)
    assert (screen[0, 0], screen[0, 1], reward, terminated) == (4, 255, 1 + 2 + 3 + 4, False)
    env.step(1)
    screen, reward, terminated, _, _ = env.step(1)
    assert (screen[0, 0], reward, terminated) == (10, 9 + 10, True)  # stops where the game ends
    assert game.actions == [2] * 4 + [1] * 6


def test_games_start_after_a_random_wait() -> None:
    game = Counting(length=100)
    env = AtariPreprocessing(game, frame_skip=4, noop_max=30)
    env.reset(seed=0)
    waits = set()
    for _ in range(200):
        env.reset()
        assert set(game.actions) <= {0}
        waits.add(len(game.actions))
    assert waits == set(range(31))


def test_missing_ale_py_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvError, match=r"ALE/Breakout-v5.*pip install ale-py"):
        env_spec(BREAKOUT)


def test_breakout_episode_is_deterministic_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    lanes, again = make_lanes(BREAKOUT, 2, 0), make_lanes(BREAKOUT, 2, 0)
    assert lanes.spec == (FrameSpec((84, 84), "uint8", 4), 4)
    first = lanes.reset(0)
    assert (first.shape, first.dtype.name, first.max() > 0) == ((84, 84), "uint8", True)
    assert first.tobytes() == again.reset(0).tobytes()
    rng = np.random.default_rng(0)
    returns, decisions, frames = 0.0, 0, set()
    while True:
        action = int(rng.integers(4))
        step, same = lanes.step(0, action), again.step(0, action)
        assert step[1:] == same[1:]
        assert step.frame.tobytes() == same.frame.tobytes()
        frames.add(step.frame.tobytes())
        returns += step.reward
        decisions += 1
        if step.terminated or step.truncated:
            break
    assert step.terminated  # five lives are lost
    assert returns > 0
    assert 100 < decisions < 2000
    assert len(frames) > decisions / 2
    lanes.close()
    again.close()
    assert "".join(capfd.readouterr()) == ""
