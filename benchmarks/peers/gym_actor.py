"""Decisions per second of gym-super-mario-bros under the usual wrappers: SECONDS."""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import gym
import gym_super_mario_bros  # noqa: F401  registers its environments
from gym.wrappers import FrameStack, GrayScaleObservation, ResizeObservation
from gym_super_mario_bros.actions import SIMPLE_MOVEMENT
from nes_py.wrappers import JoypadSpace

SKIP = 4


class SkipFrame(gym.Wrapper):  # type: ignore[misc]
    """Repeats an action and adds up its rewards."""

    def step(self, action: int) -> Any:
        """Step up to SKIP frames, or until the episode ends."""
        total = 0.0
        for _ in range(SKIP):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def main(seconds: float) -> None:
    warnings.simplefilter("ignore")
    base = gym.make("SuperMarioBros-1-1-v0", apply_api_compatibility=True, disable_env_checker=True)
    env = FrameStack(ResizeObservation(GrayScaleObservation(SkipFrame(JoypadSpace(base, SIMPLE_MOVEMENT))), 84), 4)
    env.reset()
    decisions, begin = 0, time.monotonic()
    while time.monotonic() < begin + seconds:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        decisions += 1
        if terminated or truncated:
            env.reset()
    print(json.dumps({"decisions_per_s": decisions / (time.monotonic() - begin)}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
