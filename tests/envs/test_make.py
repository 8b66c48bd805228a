from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from apex_zmq.config import settings
from apex_zmq.envs.interface import EnvError, Lanes
from apex_zmq.envs.make import env_spec, make_lanes
from apex_zmq.envs.preprocess import image_frame
from apex_zmq.types import FrameSpec

CARTPOLE = settings.Env(id="CartPole-v1", frame_stack=1)


class Echo(gymnasium.Env[Any, Any]):
    """Observes samples of its space; the reward is the action."""

    def __init__(self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.last = self.observation_space.sample()
        return self.last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.last[...] = self.observation_space.sample()  # the same array every time
        return self.last, float(action), False, False, {}


@pytest.fixture
def echo(request: pytest.FixtureRequest) -> Any:
    def register(observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> str:
        def create(**kwargs: Any) -> Echo:
            return Echo(observation_space, action_space)

        gymnasium.register("Echo-v0", create)
        request.addfinalizer(lambda: gymnasium.registry.pop("Echo-v0"))
        return "Echo-v0"

    return register


def rollout(lanes: Lanes, lane: int, action: int) -> list[bytes]:
    frames, done = [lanes.reset(lane).tobytes()], False
    while not done:
        step = lanes.step(lane, action)
        frames.append(step.frame.tobytes())
        done = step.terminated or step.truncated
    return frames


def test_mario_spec_needs_no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    env = settings.Env(actions="COMPLEX_MOVEMENT", frame_height=48, frame_width=60, frame_stack=3)
    assert env_spec(env) == (FrameSpec((48, 60), "uint8", 3), 12)
    with pytest.raises(EnvError, match="pip install"):
        make_lanes(env, 1, 0).reset(0)


def test_mario_lanes_fit_their_spec() -> None:
    env = settings.Env(emulator="fceumm")
    lanes = make_lanes(env, 2, 0)
    assert lanes.spec == env_spec(env)
    assert lanes.reset(1).shape == (84, 84)
    stage, info = lanes.step(1, 6)[-2:]
    assert (stage, info["max_x"], info["cleared"]) == ("1-1", 40, 0)
    lanes.close()


def test_cartpole_terminates() -> None:
    lanes = make_lanes(CARTPOLE, 2, 0)
    assert lanes.spec == env_spec(CARTPOLE) == (FrameSpec((4,), "float32", 1), 2)
    frame = lanes.reset(0)
    assert (frame.shape, frame.dtype.name) == ((4,), "float32")
    for _ in range(20):
        step = lanes.step(0, 1)
        if step.terminated:
            break
    assert (step.terminated, step.truncated, step.reward, step.stage, step.info) == (True, False, 1.0, "", {})
    lanes.close()


def test_cartpole_is_truncated_at_max_episode_steps() -> None:
    lanes = make_lanes(settings.Env(id="CartPole-v1", frame_stack=1, max_episode_steps=5), 1, 0)
    for _ in range(2):
        lanes.reset(0)
        ends = [(step.terminated, step.truncated) for step in (lanes.step(0, 1) for _ in range(5))]
        assert ends == [(False, False)] * 4 + [(False, True)]
    lanes.close()


def test_gym_lanes_are_seeded_once_per_lane() -> None:
    lanes, again, other = make_lanes(CARTPOLE, 2, 7), make_lanes(CARTPOLE, 2, 7), make_lanes(CARTPOLE, 2, 8)
    first, second = rollout(lanes, 0, 1), rollout(lanes, 0, 1)
    assert first != second
    assert rollout(lanes, 1, 1) != first
    assert rollout(other, 0, 1) != first
    rollout(again, 1, 1)
    assert [rollout(again, 0, 1), rollout(again, 0, 1)] == [first, second]


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3)])
def test_images_become_luma_frames(echo: Any, shape: tuple[int, ...]) -> None:
    space = Box(0, 255, shape, np.uint8)
    env = settings.Env(id=echo(space, Discrete(2)), frame_height=12, frame_width=10)
    lanes = make_lanes(env, 1, 0)
    assert lanes.spec.frame == FrameSpec((12, 10), "uint8", 4)
    first = lanes.reset(0)
    before = first.tobytes()
    second = lanes.step(0, 0).frame
    assert first.tobytes() == before != second.tobytes()
    assert (second.shape, second.dtype.name) == ((12, 10), "uint8")
    seed = int(np.random.SeedSequence(0).spawn(1)[0].generate_state(1)[0])
    space.seed(seed)
    np.testing.assert_array_equal(first, image_frame(space.sample(), 12, 10))


def test_vectors_are_float32_copies(echo: Any) -> None:
    lanes = make_lanes(settings.Env(id=echo(Box(-1, 1, (6,), np.float64), Discrete(2)), frame_stack=2), 1, 0)
    assert lanes.spec.frame == FrameSpec((6,), "float32", 2)
    first = lanes.reset(0)
    before = first.tobytes()
    lanes.step(0, 0)
    assert (first.dtype.name, first.tobytes()) == ("float32", before)


def test_actions_start_at_the_start_of_the_action_space(echo: Any) -> None:
    lanes = make_lanes(settings.Env(id=echo(Box(0, 1, (2,), np.float32), Discrete(3, start=5))), 1, 0)
    lanes.reset(0)
    assert lanes.spec.num_actions == 3
    assert [lanes.step(0, action).reward for action in range(3)] == [5.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("observations", "actions", "reason"),
    [
        (Box(0, 1, (2,), np.float32), MultiDiscrete([2, 2]), "only Discrete"),
        (Box(0, 1, (2,), np.float32), Box(0, 1, (1,), np.float32), "only Discrete"),
        (Discrete(4), Discrete(2), "observes"),
        (Box(0, 1, (2, 2), np.float32), Discrete(2), "observes"),
        (Box(0, 255, (4,), np.uint8), Discrete(2), "observes"),
        (Box(0, 255, (8, 8, 4), np.uint8), Discrete(2), "observes"),
    ],
)
def test_unsuitable_spaces_are_refused(echo: Any, observations: Any, actions: Any, reason: str) -> None:
    env = settings.Env(id=echo(observations, actions))
    for attempt in (lambda: env_spec(env), lambda: make_lanes(env, 1, 0)):
        with pytest.raises(EnvError, match=reason) as refusal:
            attempt()
        assert "\n" not in str(refusal.value)


def test_user_factory_makes_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "def long_pole():\n"
        "    made = gymnasium.make('CartPole-v1').unwrapped\n"
        "    made.length = 2.0\n"
        "    return made\n"
        "def nothing():\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = settings.Env(id="own_envs:long_pole", frame_stack=1)
    lanes, cartpole = make_lanes(env, 1, 0), make_lanes(CARTPOLE, 1, 0)
    assert lanes.spec == env_spec(env) == (FrameSpec((4,), "float32", 1), 2)
    assert len(rollout(lanes, 0, 1)) > len(rollout(cartpole, 0, 1))
    with pytest.raises(EnvError, match="own_envs:nothing: returned a NoneType, not a gymnasium"):
        env_spec(settings.Env(id="own_envs:nothing"))


def test_gymnasium_rewards_are_clipped_with_clip_reward(echo: Any) -> None:
    name = echo(Box(0, 1, (2,), np.float32), Discrete(5, start=-2))
    lanes = make_lanes(settings.Env(id=name, clip_reward=True), 1, 0)
    lanes.reset(0)
    assert [lanes.step(0, action).reward for action in range(5)] == [-1.0, -1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "name", ["no_such_module:make", "os:no_such_factory", "NoSuchGame-v0", "no such id", "CartPole-v99"]
)
def test_unknown_ids_are_refused(name: str) -> None:
    with pytest.raises(EnvError, match=name) as refusal:
        env_spec(settings.Env(id=name))
    assert "\n" not in str(refusal.value)
