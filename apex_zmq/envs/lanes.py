"""Lanes of Super Mario Bros, and lanes of Gymnasium environments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from apex_zmq.config import settings
from apex_zmq.envs import atari, games, mario, preprocess
from apex_zmq.envs.emulators import Emulator
from apex_zmq.envs.info import GYMNASIUM_FLAGS
from apex_zmq.envs.interface import EnvError, EnvSpec, Frame, Lanes, Step
from apex_zmq.envs.machines import Machines, SharedMachine
from apex_zmq.types import FrameSpec, UInt8s, UInt16s

STALLED = 60  # decisions without new ground after which a state is not worth a restart
CELL_ROWS, CELL_COLUMNS, CELL_LEVELS = 11, 8, 8  # of an Atari screen (Ecoffet et al. 2021, methods)


def mario_spec(env: settings.Env) -> EnvSpec:
    """The specification of the Mario lanes, from the settings alone."""
    frame = FrameSpec((env.frame_height, env.frame_width), "uint8", env.frame_stack)
    return EnvSpec(frame, len(games.action_buttons(env.actions)))


def _clipped(reward: float, env: settings.Env) -> float:
    return min(max(reward, -1.0), 1.0) if env.clip_reward else reward


class MarioLanes:
    """Lanes of Super Mario Bros with the rules of `mario`; implements `Lanes`.

    Each lane has its own generator for no-op starts, and divides its decisions equally among the stages. A decision
    includes the frames in which the game ignores buttons: in pipes, and between two lives or stages of an episode.
    """

    def __init__(self, env: settings.Env, num_lanes: int, seed: int, machines: Machines) -> None:
        self.spec = mario_spec(env)
        self.num_lanes = num_lanes
        self._env = env
        self._buttons = games.action_buttons(env.actions)
        self._machines = machines
        self.action_names = games.action_names(env.actions)
        self.decisions_per_s = mario.FRAMES_PER_S / env.frame_skip
        self._generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(num_lanes)]
        stages = ("1-1",) if env.stages == "all" else env.stages
        self._decisions = [dict.fromkeys(stages, 0) for _ in range(num_lanes)]  # of each lane, by the stage drawn
        self._drawn = [stages[0]] * num_lanes
        self._episodes: list[mario.Episode | None] = [None] * num_lanes
        self._progress = [0.0] * num_lanes

    def reset(self, lane: int) -> Frame:
        """Begin at the lane's next stage, after a number of no-op frames."""
        stage = self._drawn[lane] = self.next_stage(lane)
        noops = int(self._generators[lane].integers(self._env.noop_max + 1))
        screen = self._machines.start(lane, stage)
        emulator = self._machines.of(lane)
        # Waiting for as long as env.noop_max allows, 255 frames, kills in none of the stages.
        for _ in range(noops):
            emulator.step(0)
        self._progress[lane] = 0.0
        self._episodes[lane] = mario.begin(mario.read(emulator.ram))
        return self._frame(emulator.ram, emulator.screen if noops else screen)

    def next_stage(self, lane: int) -> str:
        """Return the stage with the fewest decisions of the lane; among equals lanes differ."""
        played = self._decisions[lane]
        stages = list(played)
        return min(stages, key=lambda stage: (played[stage], (stages.index(stage) - lane) % len(stages)))

    def step(self, lane: int, action: int) -> Step:
        """Hold the action's buttons for `frame_skip` frames, or until the life or the stage ends."""
        before = self._episodes[lane]
        if before is None:
            raise EnvError(f"lane {lane} has no episode under way; reset it first")
        self._decisions[lane][self._drawn[lane]] += 1
        emulator = self._machines.of(lane)
        readings: list[mario.Reading] = []
        previous = None
        for reading in self._frames(emulator, self._buttons[action]):
            readings.append(reading)
            if mario.outcome(before.start, reading) is not mario.Outcome.PLAYING:
                break
            if self._env.max_pool and len(readings) == self._env.frame_skip - 1:
                previous = np.array(emulator.screen)
            elif len(readings) > self._env.frame_skip:
                previous = None
        after = mario.advance(before, readings, self._env)
        reward = _clipped(mario.reward(before, after, readings, self._env), self._env)
        terminated = mario.ended(after, self._env)
        self._progress[lane] = after.distance + mario.CLEAR_PX * (after.outcome is mario.Outcome.CLEARED)
        if after.outcome is not mario.Outcome.PLAYING and not terminated:
            for _ in mario.wait(emulator):
                pass
            after = mario.go_on(after, mario.read(emulator.ram))
            previous = None
        truncated = mario.truncated(after, self._env)
        self._episodes[lane] = None if terminated or truncated else after
        return Step(
            frame=self._frame(emulator.ram, emulator.screen, previous),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            stage=after.stage,
            info=mario.info(after, self._env),
        )

    def _frames(self, emulator: Emulator, buttons: int) -> Iterator[mario.Reading]:
        for _ in range(self._env.frame_skip):
            emulator.step(buttons)
            yield mario.read(emulator.ram)
        yield from mario.wait(emulator)  # the next decision is one that the game reacts to

    def render(self, lane: int) -> UInt8s:
        """The emulator's screen."""
        return preprocess.screen_rgb(self._screen)

    def _frame(self, ram: UInt8s, screen: UInt16s, previous: UInt16s | None = None) -> UInt8s:
        env = self._env
        self._screen = screen
        frame = preprocess.screen_frame(screen, env.hud, env.frame_height, env.frame_width, previous)
        if env.show_buttons:
            preprocess.show_buttons(frame, mario.held(ram))
        return frame

    def close(self) -> None:
        """Close the machines."""
        self._machines.close()


class RestartableMarioLanes(MarioLanes):
    """Lanes of the game on an emulator whose state can be saved; implements `restarts.RestartableLanes`."""

    stride = float(mario.AREA_PX)

    def __init__(self, env: settings.Env, num_lanes: int, seed: int, machines: SharedMachine) -> None:
        super().__init__(env, num_lanes, seed, machines)
        self._machine = machines

    def save(self, lane: int) -> tuple[tuple[bytes, mario.Episode, str], int]:
        """As `RestartableLanes.save`."""
        episode = self._episodes[lane]
        assert episode is not None
        state = self._machine.save()
        return (state, episode, self._drawn[lane]), len(state)

    def restore(self, lane: int, state: tuple[bytes, mario.Episode, str]) -> None:
        """As `RestartableLanes.restore`; what the episode has been paid for is not paid again."""
        saved, episode, self._drawn[lane] = state
        self._machine.restore(lane, saved)
        self._episodes[lane] = episode._replace(stalled=0)
        self._progress[lane] = float(episode.distance)

    def cell(self, lane: int) -> Hashable | None:
        """As `RestartableLanes.cell`; None after a long stall."""
        episode = self._episodes[lane]
        if episode is None or episode.stalled >= STALLED:
            return None
        return mario.cell(self._machine.of(lane).ram)

    def progress(self, lane: int) -> float:
        """As `RestartableLanes.progress`: pixels of new ground."""
        return self._progress[lane]


class StickyLanes:
    """Lanes with sticky actions (Machado et al. 2018, arXiv 1709.06009, section 5); implements `Lanes`.

    With a given probability, drawn once per decision from the lane's own generator, the previous action of the episode
    replaces the given one.
    """

    def __init__(self, lanes: Lanes, probability: float, seed: int) -> None:
        self.spec, self.num_lanes = lanes.spec, lanes.num_lanes
        self.action_names, self.decisions_per_s = lanes.action_names, lanes.decisions_per_s
        self._lanes = lanes
        self._probability = probability
        # The lanes' own generators come from the seed alone.
        children = np.random.SeedSequence((seed, 1)).spawn(lanes.num_lanes)
        self._generators = [np.random.default_rng(child) for child in children]
        self._previous: list[int | None] = [None] * lanes.num_lanes

    def reset(self, lane: int) -> Frame:
        """As `Lanes.reset`."""
        self._previous[lane] = None
        return self._lanes.reset(lane)

    def step(self, lane: int, action: int) -> Step:
        """As `Lanes.step`, with the action or the one before it."""
        previous = self._previous[lane]
        repeat = self._generators[lane].random() < self._probability
        taken = previous if repeat and previous is not None else action
        self._previous[lane] = taken
        return self._lanes.step(lane, taken)

    def render(self, lane: int) -> UInt8s:
        """As `Lanes.render`."""
        return self._lanes.render(lane)

    def close(self) -> None:
        """As `Lanes.close`."""
        self._lanes.close()


def gym_spec(env: settings.Env) -> EnvSpec:
    """The specification of a Gymnasium environment; makes it once.

    Raises:
        EnvError: as `GymLanes`.
    """
    made = _make_gym(env)
    try:
        return _gym_spec(env, made)
    finally:
        made.close()


def _make_gym(env: settings.Env, render: bool = False) -> gymnasium.Env[Any, Any]:
    options: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}
    try:
        if env.id.startswith(atari.PREFIX):
            return atari.make_atari(env, **options)
        module, _, factory = env.id.partition(":")
        # What follows the colon in an id of Gymnasium's own, module:Name-v0, is no identifier.
        if factory.isidentifier():
            make = getattr(importlib.import_module(module), factory)
            made = make(**options) if _takes(make, options) else make()
            if not isinstance(made, gymnasium.Env):
                raise TypeError(f"returned a {type(made).__name__}, not a gymnasium.Env")
            return made
        return gymnasium.make(env.id, disable_env_checker=True, **options)
    except EnvError:
        raise
    except Exception as error:  # an environment's constructor may raise anything
        reason = " ".join(str(error).split())
        remedy = "use SuperMarioBros, an installed Gymnasium id, or package.module:factory on PYTHONPATH"
        raise EnvError(f"env.id {env.id}: {reason}; {remedy}") from error


def _takes(function: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(**options)
    except (TypeError, ValueError):  # no such parameters; or a callable that does not tell
        return False
    return True


def _gym_spec(env: settings.Env, made: gymnasium.Env[Any, Any]) -> EnvSpec:
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
        EnvError: unknown id or factory, actions not Discrete, observations neither float
            vectors nor uint8 images, render mode rgb_array not to be had although asked for.
    """

    def __init__(self, env: settings.Env, num_lanes: int, seed: int, render: bool = False) -> None:
        self.spec = gym_spec(env)
        self.num_lanes = num_lanes
        self._env = env
        self._lanes = [_make_gym(env, render) for _ in range(num_lanes)]
        if render and self._lanes[0].render_mode != "rgb_array":
            raise EnvError(f"env.id {env.id} cannot be drawn: it must take render_mode='rgb_array'")
        first_action = self._lanes[0].action_space
        assert isinstance(first_action, gymnasium.spaces.Discrete)
        self._first_action = int(first_action.start)
        meanings = getattr(self._lanes[0].unwrapped, "get_action_meanings", None)  # Atari's
        self.action_names = tuple(meanings() if meanings else map(str, range(self.spec.num_actions)))
        self.decisions_per_s = float(self._lanes[0].metadata.get("render_fps") or 30)
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
        observation, reward, terminated, truncated, told = self._lanes[lane].step(self._first_action + action)
        self._decisions[lane] += 1
        limit = self._env.max_episode_steps
        cut = truncated or (limit is not None and self._decisions[lane] >= limit)
        earned = _clipped(float(reward), self._env)
        info = {flag: int(bool(told[flag])) for flag in GYMNASIUM_FLAGS if flag in told}
        return Step(self._frame(observation), earned, bool(terminated), bool(cut and not terminated), "", info)

    def render(self, lane: int) -> UInt8s:
        """What the environment draws in render mode rgb_array."""
        try:
            picture = self._lanes[lane].render()
        except Exception as error:  # an environment may raise anything
            raise EnvError(f"env.id {self._env.id} cannot be drawn: {' '.join(str(error).split())}") from error
        if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,)):
            raise EnvError(f"env.id {self._env.id} draws no RGB picture, uint8 [H, W, 3]; change its render()")
        return picture.copy()

    def _frame(self, observation: npt.NDArray[Any]) -> Frame:
        if self.spec.frame.dtype == "float32":
            return np.array(observation, np.float32)
        return preprocess.image_frame(observation, self._env.frame_height, self._env.frame_width)

    def close(self) -> None:
        """Close every environment."""
        for lane in self._lanes:
            lane.close()


class AtariLanes(GymLanes):
    """Lanes of an ALE game; implements `restarts.RestartableLanes`. Progress is score."""

    stride = 1.0

    def __init__(self, env: settings.Env, num_lanes: int, seed: int, render: bool = False) -> None:
        super().__init__(env, num_lanes, seed, render)
        self._score = [0.0] * num_lanes

    def next_stage(self, lane: int) -> str:
        """As `RestartableLanes.next_stage`: games have no stages."""
        return ""

    def reset(self, lane: int) -> Frame:
        """As `Lanes.reset`."""
        self._score[lane] = 0.0
        return super().reset(lane)

    def step(self, lane: int, action: int) -> Step:
        """As `Lanes.step`."""
        step = super().step(lane, action)
        self._score[lane] += max(step.reward, 0.0)
        return step

    def save(self, lane: int) -> tuple[Any, int]:
        """As `RestartableLanes.save`."""
        state = self._game(lane).clone_state()
        return (state, self._decisions[lane], self._score[lane]), len(state.serialize())

    def restore(self, lane: int, state: Any) -> None:
        """As `RestartableLanes.restore`."""
        saved, self._decisions[lane], self._score[lane] = state
        self._game(lane).restore_state(saved)

    def cell(self, lane: int) -> Hashable | None:
        """As `RestartableLanes.cell`: the screen, shrunk and darkened to few pixels and shades."""
        screen = self._game(lane).ale.getScreenGrayscale()
        small = preprocess.image_frame(screen, CELL_ROWS, CELL_COLUMNS)
        return (small // (256 // CELL_LEVELS)).tobytes()

    def progress(self, lane: int) -> float:
        """As `RestartableLanes.progress`."""
        return self._score[lane]

    def _game(self, lane: int) -> Any:
        return self._lanes[lane].unwrapped
