"""Lanes of Super Mario Bros that share one emulator, and lanes of Gymnasium environments."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from apex_zmq import config
from apex_zmq.envs import mario, preprocess
from apex_zmq.envs.emulators import Emulator
from apex_zmq.envs.interface import EnvError, EnvSpec, Frame, Progress, Step
from apex_zmq.types import FrameSpec, UInt8s, UInt16s


def mario_spec(env: config.Env) -> EnvSpec:
    """The specification of the Mario lanes, from the settings alone."""
    frame = FrameSpec((env.frame_height, env.frame_width), "uint8", env.frame_stack)
    return EnvSpec(frame, len(mario.action_buttons(env.actions)))


class MarioLanes:
    """Lanes that take turns on one emulator by swapping its state (see `Lanes`).

    Each lane draws its stages and no-op starts from a generator of its own.
    """

    def __init__(self, env: config.Env, num_lanes: int, seed: int, emulator: Emulator) -> None:
        self.spec = mario_spec(env)
        self.num_lanes = num_lanes
        self._env = env
        self._buttons = mario.action_buttons(env.actions)
        self.action_names = mario.action_names(env.actions)
        self.decisions_per_s = mario.FRAMES_PER_S / env.frame_skip
        self._emulator = emulator
        self._generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(num_lanes)]
        self._stages = [""] * num_lanes
        self._episodes: list[mario.Episode | None] = [None] * num_lanes
        self._parked: list[bytes] = [b""] * num_lanes
        self._resident: int | None = None  # the lane whose state is in the emulator

    def reset(self, lane: int) -> Frame:
        """Draw a stage and a number of no-op frames, and begin there."""
        self._park()
        generator, emulator = self._generators[lane], self._emulator
        stage = self._env.stages[generator.integers(len(self._env.stages))]
        noops = int(generator.integers(self._env.noop_max + 1))
        start = mario.start_state(emulator, stage)
        # Waiting for as long as env.noop_max allows, 255 frames, kills in none of the stages.
        emulator.load_state(start.state)
        for _ in range(noops):
            emulator.step(0)
        self._resident = lane
        self._stages[lane] = stage
        self._episodes[lane] = mario.begin(mario.read(emulator.ram))
        return self._frame(emulator.screen if noops else start.screen)

    def step(self, lane: int, action: int) -> Step:
        """Hold the action's buttons for `frame_skip` frames, or until the episode ends."""
        before = self._episodes[lane]
        if before is None:
            raise EnvError(f"lane {lane} has no episode under way; reset it first")
        if self._resident != lane:
            self._park()
            self._emulator.load_state(self._parked[lane])
            self._resident = lane
        readings = []
        for _ in range(self._env.frame_skip):
            self._emulator.step(self._buttons[action])
            readings.append(mario.read(self._emulator.ram))
            if mario.outcome(before.start, readings[-1]) is not mario.Outcome.PLAYING:
                break
        after = mario.advance(before, readings)
        terminated = after.outcome is not mario.Outcome.PLAYING
        truncated = mario.truncated(after, self._env)
        self._episodes[lane] = None if terminated or truncated else after
        return Step(
            frame=self._frame(self._emulator.screen),
            reward=mario.reward(before, after, self._env.reward),
            terminated=terminated,
            truncated=truncated,
            progress=Progress(self._stages[lane], after.max_x, after.outcome is mario.Outcome.CLEARED),
        )

    def _park(self) -> None:
        if self._resident is not None:
            self._parked[self._resident] = self._emulator.save_state()
            self._resident = None

    def render(self, lane: int) -> UInt8s:
        """The emulator's screen."""
        return preprocess.screen_rgb(self._screen)

    def _frame(self, screen: UInt16s) -> UInt8s:
        self._screen = screen
        return preprocess.screen_frame(screen, self._env.hud, self._env.frame_height, self._env.frame_width)

    def close(self) -> None:
        """Close the emulator."""
        self._emulator.close()


def gym_spec(env: config.Env) -> EnvSpec:
    """The specification of a Gymnasium environment; makes it once.

    Raises:
        EnvError: as `GymLanes`.
    """
    made = _make_gym(env.id)
    try:
        return _gym_spec(env, made)
    finally:
        made.close()


def _make_gym(env_id: str, render: bool = False) -> gymnasium.Env[Any, Any]:
    try:
        options: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except Exception as error:  # an environment's constructor may raise anything
        reason = " ".join(str(error).split())
        raise EnvError(f"env.id {env_id}: {reason}; use SuperMarioBros or an installed Gymnasium id") from error


def _gym_spec(env: config.Env, made: gymnasium.Env[Any, Any]) -> EnvSpec:
    actions, observations = made.action_space, made.observation_space
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise EnvError(f"env.id {env.id} has {actions} actions; only Discrete ones are supported")
    shape, dtype = observations.shape or (), observations.dtype
    if isinstance(observations, gymnasium.spaces.Box):
        if len(shape) == 1 and np.issubdtype(dtype, np.floating):
            return EnvSpec(FrameSpec(shape, "float32", env.frame_stack), int(actions.n))
        if dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
            size = (env.frame_height, env.frame_width)
            return EnvSpec(FrameSpec(size, "uint8", env.frame_stack), int(actions.n))
    raise EnvError(f"env.id {env.id} observes {observations}; use one with float vectors or uint8 gray or RGB images")


class GymLanes:
    """One Gymnasium environment per lane, seeded at its first reset (see `Lanes`).

    Raises:
        EnvError: unknown id, actions not Discrete, observations neither float
            vectors nor uint8 images.
    """

    def __init__(self, env: config.Env, num_lanes: int, seed: int, render: bool = False) -> None:
        self.spec = gym_spec(env)
        self.num_lanes = num_lanes
        self._env = env
        self._lanes = [_make_gym(env.id, render) for _ in range(num_lanes)]
        first_action = self._lanes[0].action_space
        assert isinstance(first_action, gymnasium.spaces.Discrete)
        self._first_action = int(first_action.start)
        meanings = getattr(self._lanes[0].unwrapped, "get_action_meanings", None)  # Atari's
        self.action_names = tuple(meanings() if meanings else map(str, range(self.spec.num_actions)))
        self.decisions_per_s = float(self._lanes[0].metadata.get("render_fps", 30))
        self._seeds: list[int | None] = [
            int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(num_lanes)
        ]
        self._decisions = [0] * num_lanes

    def reset(self, lane: int) -> Frame:
        """Reset the lane's environment."""
        seed, self._seeds[lane] = self._seeds[lane], None
        self._decisions[lane] = 0
        observation, _ = self._lanes[lane].reset(seed=seed)
        return self._frame(observation)

    def step(self, lane: int, action: int) -> Step:
        """Step the lane's environment once."""
        observation, reward, terminated, truncated, _ = self._lanes[lane].step(self._first_action + action)
        self._decisions[lane] += 1
        limit = self._env.max_episode_steps
        cut = truncated or (limit is not None and self._decisions[lane] >= limit)
        return Step(self._frame(observation), float(reward), bool(terminated), bool(cut and not terminated), None)

    def render(self, lane: int) -> UInt8s:
        """What the environment draws in render mode rgb_array."""
        try:
            picture = self._lanes[lane].render()
        except Exception as error:  # an environment may raise anything
            raise EnvError(f"env.id {self._env.id} cannot be drawn: {' '.join(str(error).split())}") from error
        if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,)):
            raise EnvError(f"env.id {self._env.id} draws no RGB picture; use one with render mode rgb_array")
        return picture.copy()

    def _frame(self, observation: npt.NDArray[Any]) -> Frame:
        if self.spec.frame.dtype == "float32":
            return np.array(observation, np.float32)
        return preprocess.image_frame(observation, self._env.frame_height, self._env.frame_width)

    def close(self) -> None:
        """Close every environment."""
        for lane in self._lanes:
            lane.close()
