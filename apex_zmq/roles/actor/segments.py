"""One lane's steps become segments: each frame encoded once, n-step columns at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_zmq.agent.nstep import n_step_columns
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
    next_value: float


class SegmentBuilder:
    """Collects one lane's steps and cuts them into segments of `length` transitions.

    Per decision: `step`, then `bootstrap` once the next observation's value is
    known. `reset` opens every episode.
    """

    def __init__(self, frame: FrameSpec, n_step: int, gamma: float, length: int) -> None:
        self._frame = frame
        self._n_step = n_step
        self._gamma = gamma
        self._length = length
        self._frames: list[bytes] = []
        self._first_frame = 0  # index of self._frames[0], counted over the lane's life
        self._position = 0  # index of the current observation's first frame, likewise
        self._steps: list[_Step] = []

    def reset(self, frame: npt.NDArray[Any]) -> None:
        """Open an episode with its reset frame, repeated to fill the stack."""
        self._position = self._first_frame + len(self._frames)
        self._frames += [encode_frame(frame, self._frame.codec)] * self._frame.stack

    def step(
        self,
        action: int,
        q_taken: float,
        frame: npt.NDArray[Any],
        reward: float,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add one step: Q(s, a) as acted upon, and the frame it led to."""
        self._steps.append(_Step(self._position, action, reward, terminated, truncated, q_taken, 0.0))
        self._frames.append(encode_frame(frame, self._frame.codec))
        self._position += 1

    def bootstrap(self, next_value: float) -> None:
        """Set max_a Q of the last step's next observation (of the final one where the episode was truncated)."""
        self._steps[-1].next_value = next_value

    def take(self, actor: str, incarnation: int, *, flush: bool = False) -> Segment | None:
        """The next segment (sequence 0, to be set on sending), or None while there are too few complete steps.

        flush: accept a shorter one.
        """
        if not self._steps or (not flush and len(self._steps) < self._length):
            return None
        columns = n_step_columns(
            np.array([step.reward for step in self._steps], np.float32),
            np.array([step.terminated for step in self._steps]),
            np.array([step.truncated for step in self._steps]),
            np.array([step.q_taken for step in self._steps], np.float32),
            np.array([step.next_value for step in self._steps], np.float32),
            self._n_step,
            self._gamma,
        )
        count = min(len(columns.reward), self._length)
        if count == 0 or (count < self._length and not flush):
            return None
        taken, self._steps = self._steps[:count], self._steps[count:]
        first = np.array([step.first for step in taken]) - self._first_frame
        num_frames = int((first + columns.steps[:count]).max()) + self._frame.stack
        frames = self._frames[:num_frames]
        frame_crcs = np.array([frame_crc(frame) for frame in frames], np.uint32)
        segment = Segment(
            actor=actor,
            incarnation=incarnation,
            sequence=0,
            frame=self._frame,
            frames=b"".join(frames),
            frame_sizes=np.array([len(frame) for frame in frames], np.uint32),
            frame_crcs=frame_crcs,
            first=first.astype(np.uint16),
            steps=columns.steps[:count],
            action=np.array([step.action for step in taken], np.uint16),
            reward=columns.reward[:count],
            discount=columns.discount[:count],
            td_error=columns.td_error[:count],
            window_crcs=window_crcs(frame_crcs, first, columns.steps[:count], self._frame.stack),
        )
        keep = (self._steps[0].first if self._steps else self._position) - self._first_frame
        del self._frames[:keep]
        self._first_frame += keep
        return segment
