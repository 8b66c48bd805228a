"""Train and evaluate PPO and DQN of stable-baselines3 with our torso, with settings for Mario and a time budget."""

from __future__ import annotations

import csv
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import Tensor, nn

from apex_zmq.agent.networks import make_network
from apex_zmq.config.settings import Agent, Config
from apex_zmq.envs.info import MARIO_COLUMNS
from apex_zmq.play.evaluator import summarize
from apex_zmq.play.player import Player, Protocol
from apex_zmq.rundir.episodes import COLUMNS, EPISODES
from apex_zmq.types import FrameSpec
from benchmarks.peers.sb3_env import MarioEnv

WIDTH = 512  # of the hidden layer; our network has two of 256
CHECKPOINT_S = 60.0


class Features(BaseFeaturesExtractor):
    """Our torso of that name and a hidden layer: pixels [B, s, H, W] from 0 to 255 -> float32 [B, 512]."""

    def __init__(self, space: gymnasium.spaces.Box, network: str) -> None:
        super().__init__(space, WIDTH)
        stack, *shape = space.shape
        self.torso = make_network(Agent(network=network), FrameSpec(tuple(shape), "uint8", stack), 1).torso
        self.hidden = nn.Sequential(nn.Linear(self.torso.num_features, WIDTH), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of a batch of observations."""
        features: Tensor = self.hidden(self.torso(pixels))
        return features


class ByTheClock(BaseAlgorithm):
    """An algorithm with a time budget on two cores.

    Its schedules run over that time, since the number of decisions is not known in advance. It learns with two threads
    and acts with one, which leaves a core to the environments.
    """

    begin = 0.0  # unix seconds
    seconds = 1.0

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        self._current_progress_remaining = max(0.0, 1 - (time.time() - self.begin) / self.seconds)

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Learn from the collected experience, with two threads."""
        torch.set_num_threads(2)
        super().train(*args, **kwargs)
        torch.set_num_threads(1)


class ClockedPPO(ByTheClock, PPO):
    """PPO whose entropy bonus decays as well."""

    entropy = LinearSchedule(0.01, 1e-4, 0.8)

    def train(self) -> None:
        """Set the entropy bonus, then train."""
        self.ent_coef = self.entropy(self._current_progress_remaining)
        super().train()


class ClockedDQN(ByTheClock, DQN):
    """DQN."""


def make_agent(algorithm: str, config: Config, seed: int) -> BaseAlgorithm:
    """Make an untrained agent and its environments, each in its own process, so that both cores act."""
    shared = {
        "seed": seed,
        "gamma": config.agent.gamma,
        "device": "cpu",
        "policy_kwargs": {
            "features_extractor_class": Features,
            "features_extractor_kwargs": {"network": config.agent.network},
            "net_arch": [],
            "normalize_images": False,  # our torso does that
        },
    }
    if algorithm == "ppo":
        # The recipe of tsilva/rlab's experiments/goals/SuperMarioBros-Nes-v0/Level1-1/recipes, which clears 1-1 in 95%
        # of its episodes after 5M decisions: 16 environments of 512 steps, gamma 0.9, GAE lambda 1, clip 0.15, 10
        # epochs of batches of 512, learning rate and entropy falling for the first 80% of these 5M. It does not
        # normalize advantages, with rewards of tens per decision; ours are about 1, so SB3's default is comparable.
        return ClockedPPO(
            "CnnPolicy",
            _make_envs(config, 16, seed),
            n_steps=512,
            batch_size=512,
            n_epochs=10,
            learning_rate=LinearSchedule(1.5e-4, 1e-4, 0.8),
            gae_lambda=1.0,
            clip_range=0.15,
            target_kl=0.16,
            **shared,
        )
    # The settings for Atari of rl-baselines3-zoo's hyperparams/dqn.yml: an update of batch 32 every 4 decisions,
    # learning rate 1e-4, target network every 1,000 decisions, epsilon falling to 0.01. They are for 10M decisions, so
    # learning begins and epsilon ends earlier here. n-step returns, which the zoo does not use, are those of our agent.
    num_envs, decisions_per_update = 8, 4
    return ClockedDQN(
        "CnnPolicy",
        _make_envs(config, num_envs, seed),
        n_steps=config.agent.n_step,
        buffer_size=200_000,  # 4.6 GB of 48 x 60 frames; optimize_memory_usage excludes n-step returns
        learning_starts=10_000,
        batch_size=32,
        learning_rate=1e-4,
        train_freq=1,  # after a step of all environments
        gradient_steps=num_envs // decisions_per_update,
        target_update_interval=1_000,
        exploration_fraction=0.25,
        exploration_final_eps=0.01,
        **shared,
    )


def _make_envs(config: Config, count: int, seed: int) -> SubprocVecEnv:
    seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
    # Forked after a first episode, the processes share imported and compiled code and start in a second each.
    first = MarioEnv(config.env, seed)
    first.reset()
    first.close()
    return SubprocVecEnv([partial(MarioEnv, config.env, each) for each in seeds], start_method="fork")


class Recorder(BaseCallback):
    """Write `episodes.csv`, as our learner does, and a checkpoint per minute; end training at the deadline."""

    def __init__(self, directory: Path, deadline: float) -> None:
        super().__init__()
        self._directory = directory
        self._deadline = deadline  # unix seconds
        self._episodes = (directory / EPISODES).open("w", buffering=1, newline="")
        csv.writer(self._episodes).writerow((*COLUMNS, *MARIO_COLUMNS))
        self._saved, self._saved_decisions = time.time(), -1

    def _on_step(self) -> bool:
        now = time.time()
        epsilon = ""
        if isinstance(self.model, DQN):
            random = self.num_timesteps <= self.model.learning_starts
            epsilon = "1" if random else f"{self.model.exploration_rate:.4g}"
        writer = csv.DictWriter(self._episodes, (*COLUMNS, *MARIO_COLUMNS))
        for lane in np.flatnonzero(self.locals["dones"]):
            account = self.locals["infos"][lane]["account"]
            writer.writerow({"time": f"{now:.1f}", "decisions": self.num_timesteps, "epsilon": epsilon, **account})
        if now >= self._saved + CHECKPOINT_S:
            self._save()
        return now < self._deadline

    def _on_training_end(self) -> None:
        if self.num_timesteps > self._saved_decisions:
            self._save()
        self._episodes.close()

    def _save(self) -> None:
        self._saved, self._saved_decisions = time.time(), self.num_timesteps
        self.model.save(self._directory / f"step-{self.num_timesteps:09}.zip")


def train(algorithm: str, config: Config, seed: int, directory: Path, begin: float, seconds: float) -> None:
    """Train until `seconds` after `begin` (unix seconds), into an existing directory.

    Raises:
        EnvError: emulator or game missing or unusable.
    """
    agent = make_agent(algorithm, config, seed)
    torch.set_num_threads(1)
    agent.begin, agent.seconds = begin, seconds
    agent.learn(2**62, Recorder(directory, begin + seconds))
    agent.get_env().close()


class Preferences(nn.Module):
    """An agent's preferences [1, A] for an observation [1, s, H, W]: Q-values of DQN, log-probabilities of PPO.

    stochastic: Gumbel noise is added, so that the largest is a sample of PPO's policy.
    """

    def __init__(self, agent: PPO | DQN, stochastic: bool) -> None:
        super().__init__()
        self.policy = agent.policy
        self.stochastic = stochastic

    def forward(self, observation: Tensor) -> Tensor:
        """Preferences for an observation."""
        if hasattr(self.policy, "q_net"):
            q: Tensor = self.policy.q_net(observation)
            return q
        logits: Tensor = self.policy.get_distribution(observation).distribution.logits
        return logits - torch.empty_like(logits).exponential_().log() if self.stochastic else logits


def evaluate(
    algorithm: str, checkpoint: Path, config: Config, protocol: Protocol, episodes: int, seed: int, stochastic: bool
) -> dict[str, Any]:
    """Play a checkpoint as `apex_zmq.play.evaluator.evaluate` does and summarize.

    Raises:
        EnvError: emulator or game missing or unusable.
    """
    kind = {"ppo": PPO, "dqn": DQN}[algorithm]
    agent = kind.load(checkpoint, device="cpu", custom_objects={"buffer_size": 1, "replay_buffer_class": None})
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    player = Player(config, protocol, seed)
    player.network = Preferences(agent, stochastic).eval()
    ends = [list(player.episode())[-1] for _ in range(episodes)]
    player.close()
    return {
        "checkpoint": str(checkpoint),
        "env": config.env.id,
        "protocol": protocol,
        "seed": seed,
        **summarize(ends),
    }
