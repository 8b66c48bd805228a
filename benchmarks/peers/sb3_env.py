"""Our environment as a Gymnasium environment, for other trainers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from apex_zmq.config import settings
from apex_zmq.envs.info import MARIO_COLUMNS
from apex_zmq.envs.make import Step, make_lanes
from apex_zmq.types import UInt8s


class MarioEnv(gymnasium.Env[UInt8s, np.int64]):
    """One lane of Super Mario Bros.

    Observes the last s frames, uint8 [s, H, W]; an episode begins with its first frame s times. Its games depend on
    `seed` and the actions alone, not on seeds given to `reset`. The last step of an episode has its account in
    info["account"]: stage, return, length (decisions), max_x, cleared (0 or 1), as in `episodes.csv`.

    Raises:
        EnvError: emulator or game missing or unusable.
    """

    def __init__(self, env: settings.Env, seed: int) -> None:
        self._lanes = make_lanes(env, 1, seed)
        frame, num_actions = self._lanes.spec
        self.observation_space = gymnasium.spaces.Box(0, 255, (frame.stack, *frame.shape), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(num_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[UInt8s, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._return, self._length = 0.0, 0
        self._observation: UInt8s = np.repeat(self._lanes.reset(0)[None], self._lanes.spec.frame.stack, axis=0)
        return self._observation, {}

    def step(self, action: np.int64) -> tuple[UInt8s, float, bool, bool, dict[str, Any]]:
        """Take one decision."""
        step = self._lanes.step(0, int(action))
        self._observation = np.concatenate([self._observation[1:], step.frame[None]])
        self._return += step.reward
        self._length += 1
        ended = step.terminated or step.truncated
        info = {"account": self._account(step)} if ended else {}
        return self._observation, step.reward, step.terminated, step.truncated, info

    def _account(self, step: Step) -> dict[str, Any]:
        return {
            "stage": step.stage,
            "return": round(self._return, 3),
            "length": self._length,
            **{entry: step.info[entry] for entry in MARIO_COLUMNS},
        }

    def close(self) -> None:
        """Close the emulator."""
        self._lanes.close()
