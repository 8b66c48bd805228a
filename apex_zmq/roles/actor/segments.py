"""Builds segments of n-step transitions from the steps of one lane; each frame is encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_zmq.agent.nstep import n_step_transitions
from apex_zmq.types import FrameSpec, Segment
from apex_zmq.wire.checksums import frame_crc, window_crcs
from apex_zmq.wire.frames import encode_frame


@dataclass(slots=True)
class _Step:
    first: int  # index of its observation's first frame, counted over the lane's life
    action: int
    reward: float
    terminated: bool
    truncated: bool
    q_taken: float
    next_value: float | None = None  # None: not set yet


class SegmentBuilder:
    """Collects one lane's steps and cuts them into segments of `length` transitions.

    Order of calls (asserted): `reset` at the start of each episode; for each decision `step`, then `bootstrap` with the
    value of the next observation, then `take` until it returns None. If the step ended the episode, the next `reset`
    may come before or after its `bootstrap`.
    """

    def __init__(self, frame: FrameSpec, n_step: int, gamma: float, length: int, *, cut_returns: bool = False) -> None:
        self._frame = frame
        self._n_step = n_step
        self._gamma = gamma
        self._length = length
        self._cut_returns = cut_returns
        self._frames: list[bytes] = []
        self._first_frame = 0  # index of self._frames[0], counted over the lane's life
        self._position = 0  # index of the current observation's first frame, likewise
        self._steps: list[_Step] = []

    def reset(self, observation: npt.NDArray[Any]) -> None:
        """Start an episode with its first observation, [s, *frame shape]."""
        self._position = self._first_frame + len(self._frames)
        self._frames += [encode_frame(frame, self._frame.codec) for frame in observation]

    def step(
        self,
        action: int,
        q_taken: float,
        frame: npt.NDArray[Any],
        reward: float,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add one step. q_taken: Q(s, a) at the time of acting; frame: the next frame."""
        assert not self._steps or self._steps[-1].next_value is not None, "bootstrap() before the next step()"
        self._steps.append(_Step(self._position, action, reward, terminated, truncated, q_taken))
        self._frames.append(encode_frame(frame, self._frame.codec))
        self._position += 1

    def bootstrap(self, next_value: float) -> None:
        """Set max_a Q of the last step's next observation; if truncated, of the real final observation.

        If the episode terminated, the value is not used.
        """
        self._steps[-1].next_value = next_value

    def take(self, *, flush: bool = False) -> Segment | None:
        """Return the next segment; None: too few complete steps.

        flush: accept a shorter segment.
        """
        if not self._steps or (not flush and len(self._steps) < self._length):
            return None
        assert self._steps[-1].next_value is not None, "bootstrap() before take()"
        table = n_step_transitions(
            np.array([step.reward for step in self._steps], np.float32),
            np.array([step.terminated for step in self._steps]),
            np.array([step.truncated for step in self._steps]),
            np.array([step.q_taken for step in self._steps], np.float32),
            np.array([step.next_value for step in self._steps], np.float32),
            self._n_step,
            self._gamma,
            cut=self._cut_returns,
        )
        count = min(len(table), self._length)
        if count == 0 or (count < self._length and not flush):
            return None
        transitions = table[:count]
        taken, self._steps = self._steps[:count], self._steps[count:]
        transitions["action"] = [step.action for step in taken]
        transitions["first"] = [step.first - self._first_frame for step in taken]
        first, steps = transitions["first"], transitions["steps"]
        num_frames = int((first.astype(np.int64) + steps).max()) + self._frame.stack
        frames = self._frames[:num_frames]
        frame_crcs = np.array([frame_crc(frame) for frame in frames], np.uint32)
        transitions["window_crc"] = window_crcs(frame_crcs, first, steps, self._frame.stack)
        segment = Segment(
            frame=self._frame,
            frames=b"".join(frames),
            frame_sizes=np.array([len(frame) for frame in frames], np.uint32),
            frame_crcs=frame_crcs,
            transitions=transitions,
        )
        keep = (self._steps[0].first if self._steps else self._position) - self._first_frame
        del self._frames[:keep]
        self._first_frame += keep
        return segment
