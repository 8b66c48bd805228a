"""Start states: the archive, and lanes of the real game that begin from it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.config.settings import Env, Restarts
from apex_zmq.envs import restarts
from apex_zmq.envs.archive import Node
from apex_zmq.envs.emulators import FCEUmm
from apex_zmq.envs.interface import EnvError, Step
from apex_zmq.envs.lanes import MarioLanes, RestartableMarioLanes
from apex_zmq.envs.machines import MachinePerLane, SharedMachine
from apex_zmq.envs.make import make_lanes
from apex_zmq.envs.restarts import Kind, RestartableLanes, Starts

ACTIONS = (("right",), ("right", "A"), ("right", "B"), ("right", "A", "B"))
ENV = Env(actions=ACTIONS, frame_height=48, frame_width=60, noop_max=8, show_buttons=True)
NUM_LANES = 8
ALWAYS = Restarts(share=1.0, explorers=0.3)


@pytest.fixture(scope="module")
def emulator() -> Iterator[FCEUmm]:
    machine = FCEUmm()
    yield machine
    machine.close()


def lanes_of(emulator: FCEUmm, env: Env = ENV, seed: int = 1) -> RestartableMarioLanes:
    return RestartableMarioLanes(env, NUM_LANES, seed, SharedMachine(emulator))


def plain(step: Step) -> tuple[Any, ...]:
    """A step, comparable."""
    return (step.frame.tobytes(), *step[1:])


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 30), st.integers(0, NUM_LANES - 1))
@settings(max_examples=8)
def test_a_restored_lane_plays_as_the_saved_one_did(
    emulator: FCEUmm, seed: int, before: int, after: int, other: int
) -> None:
    lanes, rng = lanes_of(emulator), np.random.default_rng(seed)
    for lane in range(NUM_LANES):
        lanes.reset(lane)
    for action in rng.integers(0, len(ACTIONS), before):
        step = lanes.step(3, int(action))
        if step.terminated:
            lanes.reset(3)
    saved, size = lanes.save(3)
    assert size == 13_321
    actions = rng.integers(0, len(ACTIONS), after)
    played: list[list[Any]] = []
    for lane in (3, other):
        if played:
            lanes.reset((other + 1) % NUM_LANES)  # the emulator is another lane's meanwhile
            lanes.restore(other, saved)
        played.append([])
        for action in actions:
            step = lanes.step(lane, int(action))
            played[-1].append((*plain(step), lanes.progress(lane)))
            if step.terminated:
                break
            played[-1].append(lanes.cell(lane))
    assert played[0] == played[1]


def test_what_has_been_paid_is_not_paid_again(emulator: FCEUmm) -> None:
    lanes = lanes_of(emulator)
    lanes.reset(0)
    start, _ = lanes.save(0)
    earned = [lanes.step(0, 0).reward for _ in range(12)]
    saved, _ = lanes.save(0)
    lanes.restore(1, start)
    assert [lanes.step(1, 0).reward for _ in range(12)] == earned
    lanes.restore(2, saved)
    lanes._machine.of(2).ram[0x86] -= 60  # Mario is taken back over ground that has been paid
    assert max(lanes.step(2, 0).reward for _ in range(3)) < 0 < earned[-1]


def play(starts: Starts, lanes: RestartableMarioLanes, epsilons: list[float], decisions: int) -> list[list[Any]]:
    """Play all lanes as an actor does, at random; what each lane saw and began with."""
    generators = [np.random.default_rng(lane) for lane in range(NUM_LANES)]
    seen: list[list[Any]] = [[] for _ in range(NUM_LANES)]
    observations: list[Any] = [None] * NUM_LANES

    def begin(lane: int) -> None:
        observations[lane], kind = starts.begin(lane, epsilons[lane])
        seen[lane].append((kind, observations[lane].tobytes()))

    for lane in range(NUM_LANES):
        begin(lane)
    for _ in range(decisions):
        for lane in range(NUM_LANES):
            action = starts.choose(lane, int(generators[lane].integers(len(ACTIONS))))
            step = lanes.step(lane, action)
            observations[lane] = np.concatenate([observations[lane][1:], step.frame[None]])
            over = starts.follow(lane, step, observations[lane])
            seen[lane].append(plain(step))
            if step.terminated or step.truncated or over:
                begin(lane)
    return seen


def test_lanes_of_low_epsilon_play_as_without_restarts_and_the_others_begin_elsewhere(emulator: FCEUmm) -> None:
    epsilons = [0.4, 0.4, 0.4, 0.4, 0.4, 0.0102, 0.01, 0.001]
    played = []
    for options in (ALWAYS, Restarts()):
        lanes = lanes_of(emulator)
        starts = Starts(lanes, options, np.random.default_rng(0))
        played.append((starts, play(starts, lanes, epsilons, 240)))
    (with_restarts, seen), (without, expected) = played
    assert seen[6:] == expected[6:]
    kinds = Counter(kind for lane in seen[:6] for kind, *_ in lane if isinstance(kind, Kind))
    assert min(kinds[kind] for kind in Kind) > 0
    assert (with_restarts.counts["restarts"], with_restarts.counts["explorations"]) == (
        kinds[Kind.RESTART] + kinds[Kind.REPEAT],
        kinds[Kind.EXPLORER],
    )
    assert 0 < with_restarts.counts["restart_passes"] <= kinds[Kind.RESTART] + kinds[Kind.EXPLORER]
    assert {kind for lane in expected for kind, *_ in lane if isinstance(kind, Kind)} == {Kind.REAL}
    assert without.archive.num_cells == without.archive.size == 0
    # A restart begins with the frames before it: velocity is visible.
    begun = [first for lane in seen[:6] for kind, first in (e for e in lane if len(e) == 2) if kind is not Kind.REAL]
    size = len(begun[0]) // ENV.frame_stack
    assert any(len({first[at : at + size] for at in range(0, len(first), size)}) > 1 for first in begun)


def test_the_actions_of_a_path_lead_from_any_of_its_nodes_to_its_end(emulator: FCEUmm) -> None:
    lanes = lanes_of(emulator)
    starts = Starts(lanes, ALWAYS, np.random.default_rng(0))
    play(starts, lanes, [0.4] * NUM_LANES, 250)
    path = max(starts.archive.paths("1-1"), key=lambda path: path.progress)
    saved = [(node.snapshot, taken) for node, taken in zip(path.nodes, path.taken, strict=True) if node.snapshot]
    assert len(saved) > 2
    for snapshot, taken in saved:
        lanes.restore(0, snapshot.state)
        for action in path.actions[taken:]:
            step = lanes.step(0, action)
        assert lanes.progress(0) == path.progress
    assert step.info["max_x"] > 258  # further than without a jump


def test_explorers_stop_once_a_path_reaches_the_goal(emulator: FCEUmm) -> None:
    env = Env(actions=ACTIONS, stages=("1-1",), noop_max=0)
    lanes = lanes_of(emulator, env)
    starts = Starts(lanes, ALWAYS, np.random.default_rng(0))
    starts._solved.add("1-1")
    play(starts, lanes, [0.4] * NUM_LANES, 250)
    restarted = starts.counts["restart_decisions"]
    explored = starts.counts["explorations"] * restarts.EXPLORATION
    assert 0 < explored < 0.2 * restarted
    assert starts.counts["restarts"] > 0


def test_restarts_are_cut_at_their_length(emulator: FCEUmm) -> None:
    lanes = lanes_of(emulator)
    starts = Starts(lanes, Restarts(share=1.0, explorers=0.5, length=30), np.random.default_rng(0))
    seen = play(starts, lanes, [0.4] * NUM_LANES, 200)
    lengths: dict[Kind, int] = dict.fromkeys(Kind, 0)
    for lane in seen:
        kind, length = Kind.REAL, 0
        for each in lane:
            if isinstance(each[0], Kind):
                kind, length = each[0], 0
            else:
                length += 1
                lengths[kind] = max(lengths[kind], length)
    assert lengths[Kind.RESTART] == 30
    assert lengths[Kind.EXPLORER] == restarts.EXPLORATION


def test_stages_are_played_in_equal_shares_of_decisions(emulator: FCEUmm) -> None:
    env = Env(actions=ACTIONS, stages=("1-1", "1-3", "1-4"), noop_max=0, stall_limit=20)
    lanes = lanes_of(emulator, env)
    played: Counter[str] = Counter()
    first = {lanes.next_stage(lane) for lane in range(3)}
    assert first == set(env.stages)
    rng = np.random.default_rng(0)
    lanes.reset(0)
    longest, length = 0, 0
    for _ in range(900):
        step = lanes.step(0, int(rng.integers(len(ACTIONS))))
        played[step.stage] += 1
        length += 1
        if step.terminated or step.truncated:
            longest, length = max(longest, length), 0
            lanes.reset(0)
    assert max(played.values()) - min(played.values()) <= longest


def test_environments_without_states_are_refused(emulator: FCEUmm) -> None:
    lanes = MarioLanes(ENV, 1, 0, MachinePerLane())
    with pytest.raises(EnvError, match=r"actor\.restarts needs an environment whose state can be saved"):
        Starts(lanes, ALWAYS, np.random.default_rng(0))
    Starts(lanes, Restarts(), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("progress", "expected"), [([], 1.0), ([0.0], 1.0), ([100.0, 300.0], 0.5), ([400.0, 400.0], 0.0)]
)
def test_restarts_are_needed_for_what_the_greedy_lanes_lack(
    emulator: FCEUmm, progress: list[float], expected: float
) -> None:
    starts = Starts(lanes_of(emulator), ALWAYS, np.random.default_rng(0))
    assert starts.need("1-1") == 1.0
    starts.archive.record("1-1", Node(), [], 400.0, succeeded=True)
    starts._ends["1-1"] = deque(progress)
    assert starts.need("1-1") == 1.0
    starts._solved.add("1-1")
    assert starts.need("1-1") == expected


def test_histograms_show_the_archive_and_where_low_epsilon_lanes_die(emulator: FCEUmm) -> None:
    lanes = lanes_of(emulator)
    starts = Starts(lanes, ALWAYS, np.random.default_rng(0))
    assert starts.histograms() == {}
    seen = play(starts, lanes, [0.4, 0.01] * (NUM_LANES // 2), 160)
    (made,) = starts.histograms().values()
    assert sum(made.frontier) == starts.archive.num_cells > 0
    steps = [each for lane in seen[1::2] for each in lane if not isinstance(each[0], Kind)]
    assert sum(made.ends) == sum(terminated or truncated for _, _, terminated, truncated, *_ in steps) > 0
    assert made.width == lanes.stride
    reached = max(starts.archive.frontier()["1-1"])
    assert made.frontier[int(reached // made.width)] > 0


def test_histograms_count_the_newest_ends_only(emulator: FCEUmm, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = lanes_of(emulator)
    starts = Starts(lanes, ALWAYS, np.random.default_rng(0))
    frame = lanes.reset(0)
    observation, _ = starts.begin(0, 0.01)
    ended = Step(frame=frame, reward=0.0, terminated=True, truncated=False, stage="1-1", info={})
    for progress in (*[100.0] * 5, *[300.0] * restarts.ENDS_MAX):
        monkeypatch.setattr(lanes, "progress", lambda lane, progress=progress: progress)
        starts.follow(0, ended, observation)
    assert starts.histograms()["1-1"].ends == (0, 0, restarts.ENDS_MAX)


def test_without_restarts_there_are_no_histograms(emulator: FCEUmm) -> None:
    lanes = lanes_of(emulator)
    starts = Starts(lanes, Restarts(), np.random.default_rng(0))
    play(starts, lanes, [0.01] * NUM_LANES, 60)
    assert starts.histograms() == {}


def test_a_restored_atari_lane_plays_as_the_saved_one_did() -> None:
    lanes = make_lanes(Env(id="ALE/SpaceInvaders-v5", noop_max=5), 2, 0)
    assert isinstance(lanes, RestartableLanes)
    rng = np.random.default_rng(0)
    for lane in range(2):
        lanes.reset(lane)
    for action in rng.integers(0, lanes.spec.num_actions, 40):
        lanes.step(0, int(action))
    saved, size = lanes.save(0)
    assert size > 0
    actions = rng.integers(0, lanes.spec.num_actions, 60)
    played = []
    for lane in range(2):
        lanes.restore(lane, saved)
        steps = [(plain(lanes.step(lane, int(action))), lanes.cell(lane), lanes.progress(lane)) for action in actions]
        played.append(steps)
    assert played[0] == played[1]
    assert len({cell for _, cell, _ in played[0]}) > 1
    lanes.close()
