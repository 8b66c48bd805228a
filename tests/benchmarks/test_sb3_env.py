"""What stable-baselines3 trains in is what our actors play."""

from __future__ import annotations

import numpy as np

from apex_zmq.envs.info import MARIO_COLUMNS
from apex_zmq.envs.make import make_lanes
from benchmarks.peers.sb3_env import MarioEnv

from ..checkpoints import MARIO


def test_sb3_episode_equals_a_lane_episode() -> None:
    env, lanes = MarioEnv(MARIO.env, seed=4), make_lanes(MARIO.env, 1, 4)
    observation, _ = env.reset(seed=99)
    frames = [lanes.reset(0)] * MARIO.env.frame_stack
    np.testing.assert_array_equal(observation, frames)
    earned, length, ended = 0.0, 0, False
    while not ended:
        action = length % lanes.spec.num_actions
        step = lanes.step(0, action)
        observation, reward, terminated, truncated, info = env.step(np.int64(action))
        frames = [*frames[1:], step.frame]
        np.testing.assert_array_equal(observation, frames)
        assert (reward, terminated, truncated) == (step.reward, step.terminated, step.truncated)
        assert env.observation_space.contains(observation)
        earned, length, ended = earned + reward, length + 1, terminated or truncated
        assert ("account" in info) == ended
    assert info["account"] == {
        "stage": step.stage,
        "return": round(earned, 3),
        "length": length,
        **{entry: step.info[entry] for entry in MARIO_COLUMNS},
    }
    env.close()
    lanes.close()
