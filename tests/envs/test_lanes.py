"""Invariant 6: lanes play together as each would alone, on a shared machine or on one each."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.config.settings import Env
from apex_zmq.envs import mario
from apex_zmq.envs.emulators import FCEUmm
from apex_zmq.envs.interface import EnvError, Frame, Lanes, Step
from apex_zmq.envs.lanes import MarioLanes, StickyLanes
from apex_zmq.envs.machines import SharedMachine, make_machines
from apex_zmq.envs.make import env_spec, make_lanes
from apex_zmq.envs.preprocess import screen_frame
from apex_zmq.types import UInt8s

RIGHT_AND_JUMP = (("right", "B"), ("right", "A", "B"))
# Of a walk to the right, which ends at the first enemy.
WALKED = {"max_x": 298, "cleared": 0, "stages_cleared": 0, "warped": 0, "loops": 0, "stalled": 0}
ENV = Env(stages=("1-1", "1-4"), actions=RIGHT_AND_JUMP, frame_skip=8, frame_height=48, frame_width=60, noop_max=8)
NUM_LANES, DECISIONS, SEED = 3, 24, 5
# Lane 0 runs without jumping, dies at what comes first, and begins again.
ACTIONS = np.random.default_rng(0).integers(0, 2, (NUM_LANES, DECISIONS)) * np.array([[0], [1], [1]])

Event = tuple[bytes, float, bool, bool, object]  # frame, reward, ends, and what the step tells


@pytest.fixture(scope="module")
def emulator() -> Iterator[FCEUmm]:
    machine = FCEUmm()
    yield machine
    machine.close()


def trajectory(lanes: Lanes, lane: int) -> Iterator[Event]:
    yield lanes.reset(lane).tobytes(), 0.0, False, False, None
    for action in ACTIONS[lane]:
        step = lanes.step(lane, int(action))
        yield step.frame.tobytes(), step.reward, step.terminated, step.truncated, (step.stage, step.info)
        if step.terminated or step.truncated:
            yield lanes.reset(lane).tobytes(), 0.0, False, False, None


@pytest.fixture(scope="module")
def alone(emulator: FCEUmm) -> list[list[Event]]:
    return [
        list(trajectory(MarioLanes(ENV, NUM_LANES, SEED, SharedMachine(emulator)), lane)) for lane in range(NUM_LANES)
    ]


@given(st.lists(st.integers(0, NUM_LANES - 1), min_size=20, max_size=60))
@settings(max_examples=5, deadline=None)
def test_interleaved_lanes_match_lanes_played_alone(
    emulator: FCEUmm, alone: list[list[Event]], order: list[int]
) -> None:
    lanes = MarioLanes(ENV, NUM_LANES, SEED, SharedMachine(emulator))
    events = [trajectory(lanes, lane) for lane in range(NUM_LANES)]
    expected = [iter(run) for run in alone]
    for lane in order:
        assert next(events[lane], None) == next(expected[lane], None)


def test_compared_lanes_differ_and_one_terminates(alone: list[list[Event]]) -> None:
    assert alone[1][0] != alone[2][0] or alone[1][1:] != alone[2][1:]
    assert any(terminated for _, _, terminated, _, _ in alone[0])


def test_nes_py_lanes_match_lanes_played_alone() -> None:
    env = Env(emulator="nes-py", actions=RIGHT_AND_JUMP, frame_skip=8, noop_max=8)
    together, lone = make_lanes(env, 2, SEED), make_lanes(env, 2, SEED)
    first, second = trajectory(together, 0), trajectory(together, 1)
    interleaved = [event for pair in zip(first, second, strict=False) for event in pair]
    assert interleaved[1::2] == list(trajectory(lone, 1))[: len(interleaved) // 2]
    assert sum(terminated for _, _, terminated, _, _ in interleaved[::2]) >= 1  # and began again
    assert interleaved[::2] != interleaved[1::2]
    together.close()
    lone.close()


def test_nes_py_lanes_end_like_shared_machine_lanes(emulator: FCEUmm) -> None:
    """The same walk to the same death; nes-py reports a frame later, hence the margin."""
    env = Env(emulator="nes-py", stages=("1-1",), frame_skip=1, actions=(("right",),), noop_max=0)
    machines = make_machines("nes-py")
    walks = [run_out(MarioLanes(env, 1, 0, SharedMachine(emulator))), run_out(MarioLanes(env, 1, 0, machines))]
    machines.close()
    ends = [(steps[-1].terminated, steps[-1].stage, steps[-1].info) for steps in walks]
    assert ends[0] == ends[1] == (True, "1-1", WALKED)
    assert abs(len(walks[0]) - len(walks[1])) <= 1


def repeat(emulator: FCEUmm, env: Env) -> list[Step]:
    """One episode of nothing but action 0."""
    return run_out(MarioLanes(env, 1, 0, SharedMachine(emulator)))


def run_out(lanes: MarioLanes) -> list[Step]:
    lanes.reset(0)
    steps = [lanes.step(0, 0)]
    while not (steps[-1].terminated or steps[-1].truncated):
        steps.append(lanes.step(0, 0))
    with pytest.raises(EnvError, match="reset"):
        lanes.step(0, 0)
    return steps


def test_a_skip_stops_at_the_terminal_frame(emulator: FCEUmm) -> None:
    every = repeat(emulator, Env(frame_skip=1, actions=(("right",),), noop_max=0))
    last = emulator.ram.copy()
    skipped = repeat(emulator, Env(frame_skip=60, actions=(("right",),), noop_max=0))
    np.testing.assert_array_equal(emulator.ram, last)
    assert len(skipped) == -(-len(every) // 60)
    assert skipped[-1].terminated
    assert (skipped[-1].stage, skipped[-1].info) == (every[-1].stage, every[-1].info) == ("1-1", WALKED)
    np.testing.assert_array_equal(skipped[-1].frame, every[-1].frame)


def test_rewards_and_info_of_a_walk(emulator: FCEUmm) -> None:
    steps = repeat(emulator, Env(actions=(("right",),), noop_max=0))
    assert (steps[-1].stage, steps[-1].info) == ("1-1", WALKED)
    assert sum(step.reward for step in steps) == pytest.approx(0.1 * (298 - 40) - 0.01 * len(steps) - 3.0)
    assert not any(step.terminated or step.truncated for step in steps[:-1])


def test_standing_still_truncates_at_stall_limit(emulator: FCEUmm) -> None:
    steps = repeat(emulator, Env(actions=(("NOOP",),), stall_limit=5))
    assert (len(steps), steps[-1].terminated, steps[-1].truncated) == (5, False, True)


def test_frames_do_not_share_memory(emulator: FCEUmm) -> None:
    lanes = MarioLanes(ENV, 1, 0, SharedMachine(emulator))
    frames = [lanes.reset(0)]
    before = frames[0].tobytes()
    frames += [lanes.step(0, 1).frame for _ in range(4)]
    assert frames[0].tobytes() == before
    assert len({frame.tobytes() for frame in frames}) == 5
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((48, 60), "uint8")}


def test_resets_draw_random_stages_and_noops(emulator: FCEUmm) -> None:
    lanes = MarioLanes(ENV, 1, 0, SharedMachine(emulator))
    drawn = set()
    for _ in range(12):
        lanes.reset(0)
        now = mario.read(emulator.ram)
        drawn.add((f"{now.world}-{now.stage}", int(emulator.ram[0x09])))  # 0x09 counts frames
        lanes.step(0, 0)
    assert {stage for stage, _ in drawn} == {"1-1", "1-4"}
    assert len(drawn) > 4


def test_noop_counts_range_from_zero_to_noop_max(emulator: FCEUmm) -> None:
    lanes = MarioLanes(Env(noop_max=2), 1, 0, SharedMachine(emulator))
    drawn = set()
    for _ in range(30):
        lanes.reset(0)
        drawn.add(int(emulator.ram[0x09]))
    assert len(drawn) == 3


def test_max_pool_takes_the_brighter_of_the_last_two_frames(emulator: FCEUmm) -> None:
    env = Env(actions=RIGHT_AND_JUMP, frame_skip=3, max_pool=True, noop_max=0, hud="crop")
    lanes = MarioLanes(env, 1, 0, SharedMachine(emulator))
    lanes.reset(0)
    pooled = [lanes.step(0, 1).frame for _ in range(12)]
    every = Env(actions=RIGHT_AND_JUMP, frame_skip=1, noop_max=0)
    lanes = MarioLanes(every, 1, 0, SharedMachine(emulator))
    lanes.reset(0)
    differing = 0
    for frame in pooled:
        lanes.step(0, 1)
        lanes.step(0, 1)
        before = np.array(emulator.screen)
        last = lanes.step(0, 1).frame
        np.testing.assert_array_equal(frame, screen_frame(emulator.screen, "crop", 84, 84, before))
        differing += not np.array_equal(frame, last)
    assert differing > 4


@pytest.mark.parametrize(("frame_skip", "size", "side"), [(4, (48, 60), 4), (3, (84, 84), 7)])
def test_frames_show_the_buttons_held(emulator: FCEUmm, frame_skip: int, size: tuple[int, int], side: int) -> None:
    actions = (("right",), ("right", "A"), ("right", "B"), ("right", "A", "B"))
    env = Env(
        actions=actions, frame_skip=frame_skip, noop_max=0, frame_height=size[0], frame_width=size[1], show_buttons=True
    )
    plain = msgspec.structs.replace(env, show_buttons=False)
    shown, hidden = (MarioLanes(each, 1, 0, SharedMachine(emulator)) for each in (env, plain))
    pairs = [(shown.reset(0), (0, 0))]
    pairs += [(shown.step(0, action).frame, ((action & 1) * 255, (action >> 1) * 255)) for action in (1, 3, 3, 0, 2)]
    bare = [hidden.reset(0)] + [hidden.step(0, action).frame for action in (1, 3, 3, 0, 2)]
    for (frame, colours), other in zip(pairs, bare, strict=True):
        squares = frame[:side, : 2 * side].reshape(side, 2, side)
        assert [set(np.unique(squares[:, index])) for index in range(2)] == [{colour} for colour in colours]
        frame[:side, : 2 * side] = other[:side, : 2 * side]
        np.testing.assert_array_equal(frame, other)


def test_clipped_rewards(emulator: FCEUmm) -> None:
    env = Env(actions=(("right",),), noop_max=0)
    plain = [step.reward for step in repeat(emulator, env)]
    clipped = [step.reward for step in repeat(emulator, msgspec.structs.replace(env, clip_reward=True))]
    assert min(plain) < -2
    assert clipped == [min(max(reward, -1.0), 1.0) for reward in plain]


class Told:
    """Lanes that remember what they were told."""

    def __init__(self, num_lanes: int) -> None:
        self.spec, self.num_lanes = env_spec(ENV), num_lanes
        self.action_names: tuple[str, ...] = ("left", "right")
        self.decisions_per_s = 15.0
        self.actions: list[list[int]] = [[] for _ in range(num_lanes)]

    def reset(self, lane: int) -> Frame:
        return np.zeros((1, 1), np.uint8)

    def step(self, lane: int, action: int) -> Step:
        self.actions[lane].append(action)
        return Step(np.zeros((1, 1), np.uint8), 0.0, False, False, "", {})

    def render(self, lane: int) -> UInt8s:
        return np.full((1, 1, 3), len(self.actions[lane]), np.uint8)

    def close(self) -> None: ...


def test_sticky_actions_repeat_the_action_taken_before() -> None:
    told = Told(2)
    lanes = StickyLanes(told, 0.25, seed=3)
    chosen = range(4000)
    for lane in (0, 1):
        lanes.reset(lane)
        for action in chosen:
            lanes.step(lane, action)
    for taken in told.actions:
        assert all(now in (action, before) for action, now, before in zip(chosen, taken, [0, *taken], strict=False))
        repeats = sum(now != action for action, now in zip(chosen, taken, strict=True))
        assert 900 < repeats < 1100  # 1000 +- 3.7 standard deviations
    assert told.actions[0] != told.actions[1]
    again = Told(2)
    repeated = StickyLanes(again, 0.25, seed=3)
    repeated.reset(1)
    for action in chosen:
        repeated.step(1, action)
    assert again.actions[1] == told.actions[1]  # a lane's draws are its own


def test_first_action_after_reset_is_never_sticky() -> None:
    told = Told(1)
    lanes = StickyLanes(told, 1.0, seed=0)
    for first in (3, 5):
        lanes.reset(0)
        for action in (first, 1, 2):
            lanes.step(0, action)
    assert told.actions[0] == [3, 3, 3, 5, 5, 5]


def test_sticky_lanes_forward_names_rate_and_rendering() -> None:
    told = Told(2)
    lanes = StickyLanes(told, 0.25, seed=0)
    lanes.step(1, 0)
    assert (lanes.action_names, lanes.decisions_per_s) == (("left", "right"), 15.0)
    assert [lanes.render(lane)[0, 0, 0] for lane in (0, 1)] == [0, 1]


def test_sticky_setting_wraps_lanes() -> None:
    assert isinstance(make_lanes(Env(id="CartPole-v1", frame_stack=1, sticky=0.25), 1, 0), StickyLanes)
    assert not isinstance(make_lanes(Env(id="CartPole-v1", frame_stack=1), 1, 0), StickyLanes)
