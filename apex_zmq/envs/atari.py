"""Atari games of the Arcade Learning Environment, with the usual preprocessing."""

from __future__ import annotations

import importlib
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from apex_zmq.config import settings
from apex_zmq.envs.interface import EnvError
from apex_zmq.types import UInt8s

PREFIX = "ALE/"
FRAMES_PER_S = 60  # of an NTSC console


def make_atari(env: settings.Env, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make the game of `env.id`, with preprocessing.

    options: further arguments of its constructor, such as render_mode.

    Raises:
        EnvError: ale-py is not installed.
        gymnasium.error.Error: the game does not exist.
    """
    try:
        ale = importlib.import_module("ale_py")  # registers the games
    except ImportError as error:
        raise EnvError(f"env.id {env.id}: {error}; pip install ale-py") from None
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # no banner
    # Frame skip and sticky actions are implemented here and in lanes, so ALE's options are off.
    game = gymnasium.make(
        env.id, disable_env_checker=True, obs_type="grayscale", frameskip=1, repeat_action_probability=0.0, **options
    )
    return AtariPreprocessing(game, env.frame_skip, env.noop_max)


class AtariPreprocessing(gymnasium.Wrapper[Any, Any, Any, Any]):
    """No-op starts, frame skip, maximum of the last two frames (Mnih et al. 2015, methods; Machado et al. 2018).

    Observations are [210, 160] uint8 gray; lanes resize them and clip rewards, the actor stacks them. An
    episode is a whole game: the loss of a life does not end it.
    """

    def __init__(self, game: gymnasium.Env[Any, Any], frame_skip: int, noop_max: int) -> None:
        super().__init__(game)
        self.metadata = {**game.metadata, "render_fps": FRAMES_PER_S / frame_skip}
        self._frame_skip = frame_skip
        self._noop_max = noop_max

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[UInt8s, dict[str, Any]]:
        """Start a game with 0 to noop_max no-op frames, drawn from the environment's generator."""
        screen, info = self.env.reset(seed=seed, options=options)
        for _ in range(int(self.np_random.integers(self._noop_max + 1))):
            screen, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                screen, info = self.env.reset(options=options)
        return screen, info

    def step(self, action: Any) -> tuple[UInt8s, SupportsFloat, bool, bool, dict[str, Any]]:
        """Repeat the action for frame_skip frames or until the game ends; return the sum of the rewards."""
        total, screens = 0.0, []
        for _ in range(self._frame_skip):
            screen, reward, terminated, truncated, info = self.env.step(action)
            screens.append(screen)
            total += float(reward)
            if terminated or truncated:
                break
        return np.max(screens[-2:], axis=0), total, terminated, truncated, info
