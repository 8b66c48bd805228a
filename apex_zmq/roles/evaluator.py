"""The evaluator: plays a checkpoint under a fixed protocol."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch

from apex_zmq import configure
from apex_zmq.checkpoint import Checkpoint
from apex_zmq.config import Config
from apex_zmq.envs.make import Progress, make_lanes
from apex_zmq.exploration import Explorer
from apex_zmq.networks import make_network

Protocol = Literal["greedy", "noop"]
NOOP_MAX = 30  # emulator frames
NOOP_EPSILON = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One evaluated episode; progress is None outside Mario."""

    episode_return: float
    length: int
    progress: Progress | None


def evaluate(checkpoint: Checkpoint, episodes: int, protocol: Protocol, seed: int) -> dict[str, Any]:
    """Play a checkpoint and sum up; the figures are ready for JSON.

    Raises:
        ConfigError, EnvError: as `play`.
    """
    config = configure.from_tree(checkpoint.config, "checkpoint")
    return summarize(play(checkpoint, config, episodes, protocol, seed), config, protocol, seed)


def play(checkpoint: Checkpoint, config: Config, episodes: int, protocol: Protocol, seed: int) -> list[EpisodeResult]:
    """Play episodes one after another in the config's environment.

    greedy: the fixed start, the best action always. noop: 0 to 30 random no-op frames first (where the
    environment has them) and a random action with probability 0.01.

    Raises:
        ConfigError, EnvError: an environment that cannot be made.
    """
    config = configure.replace(config, {"env.noop_max": NOOP_MAX if protocol == "noop" else 0})
    lanes = make_lanes(config.env, 1, seed)
    frame, num_actions = lanes.spec
    network = make_network(config.agent.network, frame, num_actions).eval()
    network.load_state_dict(checkpoint.tensors["online"])
    explorer = Explorer(1, num_actions, None, 1, np.random.default_rng(seed))
    epsilon = np.array([NOOP_EPSILON if protocol == "noop" else 0.0])
    results = []
    try:
        for _ in range(episodes):
            observation = np.repeat(lanes.reset(0)[None], frame.stack, axis=0)
            episode_return, length = 0.0, 0
            while True:
                with torch.inference_mode():
                    q = network(torch.from_numpy(observation[None])).numpy()
                step = lanes.step(0, int(explorer.act(q.argmax(axis=1), epsilon)[0]))
                observation = np.concatenate([observation[1:], step.frame[None]])
                episode_return += step.reward
                length += 1
                if step.terminated or step.truncated:
                    results.append(EpisodeResult(episode_return, length, step.progress))
                    break
    finally:
        lanes.close()
    return results


def summarize(results: list[EpisodeResult], config: Config, protocol: Protocol, seed: int) -> dict[str, Any]:
    """The figures of an evaluation, ready for JSON."""
    returns = [result.episode_return for result in results]
    summary: dict[str, Any] = {
        "env": config.env.id,
        "protocol": protocol,
        "seed": seed,
        "episodes": len(results),
        "mean_return": float(np.mean(returns)),
        "mean_length": float(np.mean([result.length for result in results])),
    }
    progress = [result.progress for result in results if result.progress is not None]
    if progress:
        summary |= {
            "stages": sorted({each.stage for each in progress}),
            "clear_rate": float(np.mean([each.cleared for each in progress])),
            "mean_stages_cleared": float(np.mean([each.stages_cleared for each in progress])),
            "mean_x": float(np.mean([each.max_x for each in progress])),
            "best_x": max(each.max_x for each in progress),
        }
    return summary
