"""What an actor sees of any environment: specifications, steps, lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apex_zmq.errors import UserError
from apex_zmq.types import FrameSpec, UInt8s

Frame = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


class EnvError(UserError):
    """An environment that cannot be made or has gone wrong; one line, with the remedy."""


class EnvSpec(NamedTuple):
    """What a network must fit: the stored frame and the number of actions."""

    frame: FrameSpec
    num_actions: int


class Step(NamedTuple):
    """The result of one decision.

    frame: single frame of `EnvSpec.frame`, in memory of its own.
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

    A lane's trajectory depends on the seed, its number and its own actions only.
    Frames are single: stacking is the caller's. Not for use by several threads.
    """

    spec: EnvSpec
    num_lanes: int
    action_names: tuple[str, ...]  # for people
    decisions_per_s: float  # at the pace a person plays at

    def reset(self, lane: int) -> Frame:
        """Begin an episode; its first frame."""

    def step(self, lane: int, action: int) -> Step:
        """Take one decision, 0 <= action < num_actions, in an episode that has not ended."""

    def render(self, lane: int) -> UInt8s:
        """The screen as the last reset or step, which was this lane's, left it: RGB [H, W, 3], memory of its own.

        Raises:
            EnvError: an environment that draws none.
        """

    def close(self) -> None:
        """Give the environments' resources back."""
