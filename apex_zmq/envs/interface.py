"""The interface between actors and environments: specifications, steps, lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apex_zmq.errors import UserError
from apex_zmq.types import FrameSpec, UInt8s

Frame = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


class EnvError(UserError):
    """An environment that cannot be created or has failed."""


class EnvSpec(NamedTuple):
    """The shape of the problem for a network: the stored frame and the number of actions."""

    frame: FrameSpec
    num_actions: int


class Step(NamedTuple):
    """The result of one decision.

    frame: a single frame of `EnvSpec.frame`, not shared with the environment.
    stage: label of the part of the environment that is being played, at most 32 characters; empty: it has no parts.
    info: numbers of the episode so far, finite, by the entries of `envs.info`; its last step counts in statistics.
    """

    frame: Frame
    reward: float
    terminated: bool
    truncated: bool
    stage: str
    info: Mapping[str, float]


class Lanes(Protocol):
    """Environments numbered from 0 that are stepped one at a time, in any order.

    A lane's trajectory depends only on the seed, its number and its own actions.
    Frames are single; the caller stacks them. Not thread-safe.
    """

    spec: EnvSpec
    num_lanes: int
    action_names: tuple[str, ...]  # for people
    decisions_per_s: float  # at the pace a person plays at

    def reset(self, lane: int) -> Frame:
        """Start an episode; return its first frame."""

    def step(self, lane: int, action: int) -> Step:
        """Take one decision, 0 <= action < num_actions, in a running episode."""

    def render(self, lane: int) -> UInt8s:
        """Return the screen after the last reset or step, which must have been this lane's: RGB [H, W, 3], copied.

        Raises:
            EnvError: the environment cannot be rendered.
        """

    def close(self) -> None:
        """Free the environments' resources."""
