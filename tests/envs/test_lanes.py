"""Invariant 6: lanes that share one emulator play as each would alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq import config
from apex_zmq.envs import mario
from apex_zmq.envs.emulators import FCEUmm
from apex_zmq.envs.interface import EnvError, Step
from apex_zmq.envs.lanes import MarioLanes

RIGHT_AND_JUMP = (("right", "B"), ("right", "A", "B"))
ENV = config.Env(
    stages=("1-1", "1-4"), actions=RIGHT_AND_JUMP, frame_skip=8, frame_height=48, frame_width=60, noop_max=8
)
NUM_LANES, DECISIONS, SEED = 3, 24, 5
# Lane 0 runs without jumping, dies at what comes first, and begins again.
ACTIONS = np.random.default_rng(0).integers(0, 2, (NUM_LANES, DECISIONS)) * np.array([[0], [1], [1]])

Event = tuple[bytes, float, bool, bool, object]


@pytest.fixture(scope="module")
def emulator() -> Iterator[FCEUmm]:
    machine = FCEUmm()
    yield machine
    machine.close()


def trajectory(lanes: MarioLanes, lane: int) -> Iterator[Event]:
    yield lanes.reset(lane).tobytes(), 0.0, False, False, None
    for action in ACTIONS[lane]:
        step = lanes.step(lane, int(action))
        yield step.frame.tobytes(), *step[1:]
        if step.terminated or step.truncated:
            yield lanes.reset(lane).tobytes(), 0.0, False, False, None


@pytest.fixture(scope="module")
def alone(emulator: FCEUmm) -> list[list[Event]]:
    return [list(trajectory(MarioLanes(ENV, NUM_LANES, SEED, emulator), lane)) for lane in range(NUM_LANES)]


@given(st.lists(st.integers(0, NUM_LANES - 1), min_size=20, max_size=60))
@settings(max_examples=5, deadline=None)
def test_interleaved_lanes_play_as_each_alone(emulator: FCEUmm, alone: list[list[Event]], order: list[int]) -> None:
    lanes = MarioLanes(ENV, NUM_LANES, SEED, emulator)
    events = [trajectory(lanes, lane) for lane in range(NUM_LANES)]
    expected = [iter(run) for run in alone]
    for lane in order:
        assert next(events[lane], None) == next(expected[lane], None)


def test_the_lanes_compared_differ_and_die(alone: list[list[Event]]) -> None:
    assert alone[1][0] != alone[2][0] or alone[1][1:] != alone[2][1:]
    assert any(terminated for _, _, terminated, _, _ in alone[0])


def repeat(emulator: FCEUmm, env: config.Env) -> list[Step]:
    """One episode of nothing but action 0."""
    lanes = MarioLanes(env, 1, 0, emulator)
    lanes.reset(0)
    steps = [lanes.step(0, 0)]
    while not (steps[-1].terminated or steps[-1].truncated):
        steps.append(lanes.step(0, 0))
    with pytest.raises(EnvError, match="reset"):
        lanes.step(0, 0)
    return steps


def test_a_skip_stops_at_the_terminal_frame(emulator: FCEUmm) -> None:
    every = repeat(emulator, config.Env(frame_skip=1, actions=(("right",),), noop_max=0))
    last = emulator.ram.copy()
    skipped = repeat(emulator, config.Env(frame_skip=60, actions=(("right",),), noop_max=0))
    np.testing.assert_array_equal(emulator.ram, last)
    assert len(skipped) == -(-len(every) // 60)
    assert skipped[-1].terminated
    assert skipped[-1].progress == every[-1].progress
    np.testing.assert_array_equal(skipped[-1].frame, every[-1].frame)


def test_rewards_and_progress_of_a_walk(emulator: FCEUmm) -> None:
    steps = repeat(emulator, config.Env(actions=(("right",),), noop_max=0))
    walked = steps[-1].progress
    assert walked is not None
    assert walked == ("1-1", 298, False)
    assert sum(step.reward for step in steps) == pytest.approx(0.1 * (298 - 40) - 0.01 * len(steps) - 3.0)
    assert not any(step.terminated or step.truncated for step in steps[:-1])


def test_standing_still_stalls(emulator: FCEUmm) -> None:
    steps = repeat(emulator, config.Env(actions=(("NOOP",),), stall_limit=5))
    assert (len(steps), steps[-1].terminated, steps[-1].truncated) == (5, False, True)


def test_frames_are_memory_of_their_own(emulator: FCEUmm) -> None:
    lanes = MarioLanes(ENV, 1, 0, emulator)
    frames = [lanes.reset(0)]
    before = frames[0].tobytes()
    frames += [lanes.step(0, 1).frame for _ in range(4)]
    assert frames[0].tobytes() == before
    assert len({frame.tobytes() for frame in frames}) == 5
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((48, 60), "uint8")}


def test_resets_draw_stages_and_waits(emulator: FCEUmm) -> None:
    lanes = MarioLanes(ENV, 1, 0, emulator)
    drawn = set()
    for _ in range(12):
        lanes.reset(0)
        now = mario.read(emulator.ram)
        drawn.add((f"{now.world}-{now.stage}", int(emulator.ram[0x09])))  # 0x09 counts frames
    assert {stage for stage, _ in drawn} == {"1-1", "1-4"}
    assert len(drawn) > 4
