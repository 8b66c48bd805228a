"""Play a network under a fixed evaluation protocol, one decision at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from apex_zmq.agent.exploration import Explorer
from apex_zmq.agent.networks import make_network
from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import make_lanes
from apex_zmq.rundir.checkpoint import Checkpoint
from apex_zmq.types import Float32s

Protocol = Literal["greedy", "noop", "sticky"]
NOOP_MAX = 30  # emulator frames
NOOP_EPSILON = 0.01
STICKINESS = 0.25  # Machado et al. 2018 (arXiv 1709.06009), sec. 5.2


class Moment(NamedTuple):
    """The state of an episode before each decision, and once after the last one."""

    observation: npt.NDArray[Any]  # [s, *frame shape]
    q: Float32s  # [A]
    action: int | None  # the chosen action; None after the end of the episode
    episode_return: float
    length: int  # decisions taken
    stage: str  # as of `Step`; empty before the first decision
    info: Mapping[str, float]  # as of `Step`; empty before the first decision


class Player:
    """One lane and a network that plays it; the caller loads the network's parameters.

    `network` may be replaced by any module from observations [1, s, *frame shape] to action preferences [1, A].

    Protocols: greedy: fixed start, always the best action. noop: 0 to 30 random no-op frames at the start (where the
    environment supports them), and a random action with probability 0.01. sticky: fixed start, and the previous action
    is repeated with probability 0.25. The protocol replaces `env.noop_max` and `env.sticky`.

    render: whether `lanes.render(0)` will be called.

    Raises:
        ConfigError, EnvError: the environment cannot be created.
    """

    def __init__(self, config: Config, protocol: Protocol, seed: int, *, render: bool = False) -> None:
        noop_max = NOOP_MAX if protocol == "noop" else 0
        sticky = STICKINESS if protocol == "sticky" else 0.0
        config = loading.replace(config, {"env.noop_max": noop_max, "env.sticky": sticky})
        self.lanes = make_lanes(config.env, 1, seed, render=render)
        frame, num_actions = self.lanes.spec
        self.network: nn.Module = make_network(config.agent, frame, num_actions).eval()
        self.epsilon = NOOP_EPSILON if protocol == "noop" else 0.0
        self._explorer = Explorer(1, num_actions, None, 1, np.random.default_rng(seed))

    @classmethod
    def of(cls, checkpoint: Checkpoint, protocol: Protocol, seed: int, *, render: bool = False) -> Player:
        """Make a player of a checkpoint, in the environment that it was trained in.

        Raises:
            ConfigError, EnvError: the environment cannot be created.
        """
        player = cls(loading.from_tree(checkpoint.config, "checkpoint"), protocol, seed, render=render)
        player.network.load_state_dict(checkpoint.played)
        return player

    def episode(self) -> Iterator[Moment]:
        """Play one episode; yield before each decision and after the last."""
        observation = self.lanes.spec.frame.observation_of(self.lanes.reset(0))
        moment = Moment(observation, self._q_values(observation), None, 0.0, 0, "", {})
        while True:
            action = int(self._explorer.act(moment.q.argmax(keepdims=True), np.array([self.epsilon]))[0])
            yield moment._replace(action=action)
            step = self.lanes.step(0, action)
            observation = np.concatenate([moment.observation[1:], step.frame[None]])
            moment = Moment(
                observation,
                self._q_values(observation),
                None,
                moment.episode_return + step.reward,
                moment.length + 1,
                step.stage,
                step.info,
            )
            if step.terminated or step.truncated:
                yield moment
                return

    def _q_values(self, observation: npt.NDArray[Any]) -> Float32s:
        with torch.inference_mode():
            q: Float32s = self.network(torch.from_numpy(observation[None])).numpy()[0]
        return q

    def close(self) -> None:
        """Close the environment."""
        self.lanes.close()
