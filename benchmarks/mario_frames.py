"""The frame set of all benchmarks: World 1-1 on FCEUmm, played by a random player that mostly runs right.

`mario-84`: 84x84 gray, HUD cropped, 4 frames a decision, 8 lanes in turn, seed 0. The player holds one of
SIMPLE_MOVEMENT's actions for 1 to 12 decisions, those that go right four times as often.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apex_zmq.config.settings import Config
from apex_zmq.envs.make import make_lanes
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.types import Float32s, FrameSpec, Segment, UInt8s, UInt16s
from benchmarks.rows import ROOT

NAME = "mario-84"
CONFIG = Config()
DECISIONS = 20_000
LANES = 8
CACHE = ROOT / "build/benchmarks"


class Play(NamedTuple):
    """Episodes laid end to end: an episode of L decisions has L + 1 frames."""

    frames: UInt8s  # [sum of L + 1, 84, 84]
    action: UInt16s  # [sum of L]
    reward: Float32s  # [sum of L]
    lengths: npt.NDArray[np.int64]  # [episodes] L
    terminated: npt.NDArray[np.bool_]  # [episodes]; False: truncated

    def episodes(self) -> Iterator[tuple[UInt8s, UInt16s, Float32s, bool]]:
        """(frames[L + 1], action[L], reward[L], terminated) of each episode."""
        frame = decision = 0
        for length, terminated in zip(self.lengths.tolist(), self.terminated.tolist(), strict=True):
            columns = slice(decision, decision + length)
            yield self.frames[frame : frame + length + 1], self.action[columns], self.reward[columns], terminated
            frame += length + 1
            decision += length


def play() -> Play:
    """Load the frame set; the first call plays it, in about a minute, and stores it in `build/benchmarks`."""
    path = cached()
    with np.load(path) as arrays:
        return Play(**arrays)


def cached() -> Path:
    """Path of the frame set, an npz of the fields of `Play`; played first where it is missing."""
    path = CACHE / f"{NAME}.npz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **_played()._asdict())
        partial.rename(path)
    return path


def _played() -> Play:
    lanes = make_lanes(CONFIG.env, LANES, seed=0)
    rng = np.random.default_rng(0)
    weights = np.array([1, 4, 4, 4, 4, 1, 1], float)
    frames: list[UInt8s] = []
    action: list[int] = []
    reward: list[float] = []
    lengths: list[int] = []
    ends: list[bool] = []
    while len(action) < DECISIONS:
        lane = len(lengths) % LANES
        frames.append(np.asarray(lanes.reset(lane), np.uint8))
        length, held, chosen, ended = 0, 0, 0, False
        while not ended:
            if held == 0:
                chosen, held = int(rng.choice(7, p=weights / weights.sum())), int(rng.integers(1, 13))
            held -= 1
            step = lanes.step(lane, chosen)
            frames.append(np.asarray(step.frame, np.uint8))
            action.append(chosen)
            reward.append(step.reward)
            length += 1
            ended = step.terminated or step.truncated
        lengths.append(length)
        ends.append(step.terminated)
    lanes.close()
    return Play(
        np.stack(frames), np.array(action, np.uint16), np.array(reward, np.float32), np.array(lengths), np.array(ends)
    )


def segments(played: Play, config: Config = CONFIG) -> list[Segment]:
    """Segments of the play as an actor sends them; Q-values are drawn at random."""
    frame = FrameSpec((config.env.frame_height, config.env.frame_width), "uint8", config.env.frame_stack)
    builder = SegmentBuilder(frame, config.agent.n_step, config.agent.gamma, config.actor.segment_length)
    rng = np.random.default_rng(1)
    made: list[Segment] = []
    for frames, action, reward, terminated in played.episodes():
        builder.reset(frame.observation_of(frames[0]))
        for t in range(len(action)):
            ends = (terminated, not terminated) if t == len(action) - 1 else (False, False)
            q_taken, next_value = rng.random(2)
            builder.step(int(action[t]), float(q_taken), frames[t + 1], float(reward[t]), *ends)
            builder.bootstrap(float(next_value))
            while (segment := builder.take()) is not None:
                made.append(segment)
    return made
