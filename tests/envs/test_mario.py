from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from apex_zmq.config import loading, settings
from apex_zmq.envs import games, mario
from apex_zmq.envs.emulators import FCEUmm
from apex_zmq.envs.games import RIGHT
from apex_zmq.envs.interface import EnvError
from apex_zmq.envs.mario import Outcome, Reading
from apex_zmq.types import UInt8s, UInt16s

CLEARS = json.loads((Path(__file__).parents[1] / "data/mario-1-1-clears.json").read_text())
READING = Reading(
    x=40, y_page=1, in_clouds=False, player_state=8, status=0, lives=2,
    world=1, stage=1, area=1, mode=1, time=400, score=0, coins=0, standing=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def emulator() -> Iterator[FCEUmm]:
    machine = FCEUmm()
    yield machine
    machine.close()


@pytest.mark.parametrize("play", CLEARS["plays"], ids=lambda play: f"flag{play['flag_frame']}")
def test_recorded_plays_clear_at_the_flag(emulator: FCEUmm, play: dict[str, Any]) -> None:
    first = CLEARS["first_playable_frame"]
    inputs = bytes.fromhex(play["inputs"])
    emulator.power_on()
    for buttons in inputs[:first]:
        emulator.step(buttons)
    readings = [mario.read(emulator.ram)]
    for buttons in inputs[first : play["flag_frame"] + 1]:
        emulator.step(buttons)
        readings.append(mario.read(emulator.ram))
    outcomes = [mario.outcome(readings[0], reading) for reading in readings]
    assert outcomes[:-1] == [Outcome.PLAYING] * (len(outcomes) - 1)
    assert outcomes[-1] is Outcome.CLEARED
    x = np.array([reading.x for reading in readings])
    assert x[0] == 40
    assert x[-1] == x.max() == 3161
    assert np.abs(np.diff(x)).max() <= 5
    assert np.all(np.diff([reading.score for reading in readings]) >= 0)
    assert np.all(np.diff([reading.time for reading in readings]) <= 0)


def test_walking_right_dies_at_the_first_goomba(emulator: FCEUmm) -> None:
    emulator.load_state(mario.start_state(emulator, "1-1").state)
    start = mario.read(emulator.ram)
    for _ in range(300):
        emulator.step(RIGHT)
        now = mario.read(emulator.ram)
        if mario.outcome(start, now) is not Outcome.PLAYING:
            break
    assert mario.outcome(start, now) is Outcome.DEAD
    assert 280 < now.x < 320
    assert now.lives == 2  # judged at the touch, long before the life is gone


def test_start_state_of_1_1_equals_the_recorded_one(emulator: FCEUmm) -> None:
    emulator.power_on()
    for buttons in bytes.fromhex(CLEARS["plays"][1]["inputs"])[: CLEARS["first_playable_frame"]]:
        emulator.step(buttons)
    recorded, screen = emulator.ram.copy(), emulator.screen.copy()
    start = mario.start_state(emulator, "1-1")
    emulator.load_state(start.state)
    np.testing.assert_array_equal(emulator.ram, recorded)
    np.testing.assert_array_equal(start.screen, screen)


@pytest.mark.parametrize("stage", games.stages(games.MARIO))
def test_every_stage_starts(emulator: FCEUmm, stage: str) -> None:
    emulator.load_state(mario.start_state(emulator, stage).state)
    start = mario.read(emulator.ram)
    assert f"{start.world}-{start.stage}" == stage
    assert (start.x, start.y_page, start.lives, start.mode, start.player_state) == (40, 1, 2, 1, 8)
    assert start.time in (300, 400)
    area_type = emulator.ram[0x74E]  # 0 water, 1 ground, 2 underground, 3 castle
    expected = {"1-2": 2, "4-2": 2, "2-2": 0, "7-2": 0}.get(stage, 3 if stage.endswith("4") else 1)
    assert area_type == expected


class Stuck:
    """An emulator on which nothing ever happens."""

    game = games.MARIO

    def __init__(self) -> None:
        self.ram: UInt8s = np.zeros(2048, np.uint8)
        self.screen: UInt16s = np.zeros((224, 240), np.uint16)

    def step(self, buttons: int) -> None: ...

    def power_on(self) -> None: ...

    def save_state(self) -> bytes:
        return b""

    def load_state(self, state: bytes) -> None: ...

    def close(self) -> None: ...


def test_a_game_that_does_not_start_is_an_error() -> None:
    with pytest.raises(EnvError, match="1-1 did not start"):
        mario.start_state(Stuck(), "1-1")


def test_an_unknown_stage_is_an_error() -> None:
    with pytest.raises(EnvError, match="no stage '9-1'"):
        mario.start_state(Stuck(), "9-1")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Outcome.PLAYING),
        ({"x": 3000, "time": 1, "area": 3, "y_page": 0}, Outcome.PLAYING),
        ({"player_state": 0x0B}, Outcome.DEAD),
        ({"player_state": 0x06}, Outcome.DEAD),
        ({"player_state": 0x01}, Outcome.PLAYING),  # on a vine
        ({"player_state": 0x03}, Outcome.PLAYING),  # in a pipe
        ({"y_page": 2}, Outcome.DEAD),
        ({"y_page": 2, "in_clouds": True}, Outcome.PLAYING),
        ({"lives": 1}, Outcome.DEAD),
        ({"lives": 3}, Outcome.PLAYING),
        ({"lives": 255}, Outcome.DEAD),
        ({"player_state": 0x04}, Outcome.CLEARED),
        ({"player_state": 0x05, "stage": 2}, Outcome.CLEARED),
        ({"mode": 2}, Outcome.CLEARED),
        ({"stage": 2}, Outcome.WARPED),
        ({"world": 4}, Outcome.WARPED),
        ({"world": 4, "player_state": 0x0B}, Outcome.WARPED),
    ],
)
def test_outcomes(change: dict[str, Any], expected: Outcome) -> None:
    assert mario.outcome(READING, READING._replace(**change)) is expected


def test_read_decodes_numbers_from_ram() -> None:
    ram = np.zeros(2048, np.uint8)
    ram[[0x6D, 0x86, 0x75F, 0x75C, 0xE7, 0xE8]] = 12, 89, 3, 1, 0x21, 0xA4
    ram[0x7F8:0x7FB] = 3, 0, 7
    ram[0x7DE:0x7E4] = 0, 1, 2, 3, 5, 0
    ram[0x7ED:0x7EF] = 4, 2
    reading = mario.read(ram)
    assert (reading.x, reading.world, reading.stage, reading.area) == (3161, 4, 2, 0xA421)
    assert (reading.time, reading.score, reading.coins) == (307, 12350, 42)
    ram[[0x6D, 0x86]] = 255, 246
    assert mario.read(ram).x == -10  # where a maze takes back a player who has just entered it


@pytest.mark.parametrize(
    ("float_state", "swims", "standing"), [(0, 0, True), (1, 0, False), (2, 0, False), (3, 0, False), (1, 1, True)]
)
def test_mario_stands_on_ground_and_in_water(float_state: int, swims: int, standing: bool) -> None:
    ram = np.zeros(2048, np.uint8)
    ram[[0x1D, 0x704]] = float_state, swims
    assert mario.read(ram).standing is standing


def test_rewards_match_hand_computed_values() -> None:
    env = settings.Env(reward=settings.Reward(progress=0.5, progress_clip=10, time=-1.0, death=-10.0, clear=20.0))
    decisions: list[tuple[list[dict[str, Any]], float]] = [
        ([{"x": 44}, {"x": 48}], 3.0),  # 8 pixels
        ([{"x": 46}, {"x": 43}], -1.0),  # back
        ([{"x": 47}, {"x": 50}], 0.0),  # 2 pixels beyond the best
        ([{"x": 53}, {"x": 51}], 0.5),  # the best counts, not the last
        ([{"x": 100}], 4.0),  # clipped
        ([{"x": 104, "player_state": 0x04}], 21.0),  # progress and flag
    ]
    episode = mario.begin(READING)
    for changes, expected in decisions:
        readings = [READING._replace(**change) for change in changes]
        before, episode = episode, mario.advance(episode, readings, env)
        assert mario.reward(before, episode, readings, env) == pytest.approx(expected)
    assert (episode.max_x, episode.decisions, episode.outcome) == (104, 6, Outcome.CLEARED)
    dead = [READING._replace(x=42, player_state=0x0B)]
    before = mario.begin(READING)
    assert mario.reward(before, mario.advance(before, dead, env), dead, env) == pytest.approx(-10.0)


TERMS = settings.Reward(progress=1.0, progress_clip=100, time=0.0, death=-7.0, clear=20.0, area=5.0, loop=-9.0)


def earn(decisions: list[tuple[list[dict[str, Any]], float]], env: settings.Env) -> mario.Episode:
    """Check what each decision earns, given the changes of its readings; return the account after the last."""
    episode = mario.begin(READING)
    for changes, expected in decisions:
        readings = [READING._replace(**change) for change in changes]
        before, episode = episode, mario.advance(episode, readings, env)
        assert mario.reward(before, episode, readings, env) == pytest.approx(expected)
    return episode


def test_ground_is_paid_for_once_in_every_area() -> None:
    decisions: list[tuple[list[dict[str, Any]], float]] = [
        ([{"x": 90}], 50.0),
        ([{"x": 2000, "player_state": 0x03}, {"x": 7, "area": 2, "player_state": 0x07}, {"x": 30, "area": 2}], 5.0),
        ([{"x": 45, "area": 2}], 15.0),
        ([{"x": 90}], 0.0),  # back in the first
        ([{"x": 92}], 2.0),
        ([{"x": 45, "area": 2}, {"x": 49, "area": 2}], 4.0),
        ([{"x": 300}], 100.0),  # further along than the way through the other area, and clipped
    ]
    episode = earn(decisions, settings.Env(reward=TERMS))
    assert (episode.ground, episode.max_x) == ({1: 300, 2: 49}, 300)
    assert episode.distance == 50 + mario.AREA_PX + 15 + 2 + 4 + 208


def test_a_loop_back_costs_and_is_never_a_gain() -> None:
    env = settings.Env(reward=TERMS)
    decisions: list[tuple[list[dict[str, Any]], float]] = [
        ([{"x": 100}], 60.0),
        ([{"x": -924}], -9.0),  # 1,024 pixels
        ([{"x": -900}, {"x": 100}], 0.0),
        ([{"x": 101}, {"x": -923}, {"x": 101}], 1.0 - 9.0),
    ]
    episode = earn(decisions, env)
    assert (episode.max_x, episode.loops, episode.looped) == (101, 2, True)
    assert not mario.ended(episode, env)
    assert mario.ended(episode, settings.Env(loop_ends=True))
    onwards = mario.advance(episode, [READING], settings.Env(loop_ends=True))
    assert not mario.ended(onwards, settings.Env(loop_ends=True))


def test_another_area_is_no_loop_back() -> None:
    decisions: list[tuple[list[dict[str, Any]], float]] = [
        ([{"x": 139}], 99.0),
        ([{"x": 1000}], 100.0),
        ([{"x": 20, "area": 2}], 5.0),
        ([{"x": 1001}], 1.0),
    ]
    assert earn(decisions, settings.Env(reward=TERMS)).loops == 0


def test_progress_may_count_where_mario_stands_only() -> None:
    terms = msgspec.structs.replace(TERMS, progress_standing=True)
    decisions: list[tuple[list[dict[str, Any]], float]] = [
        ([{"x": 60, "standing": False}, {"x": 80, "standing": False}], 0.0),
        ([{"x": 95}], 55.0),
        ([{"x": 120, "standing": False, "player_state": 0x0B}], -7.0),  # a fall
    ]
    assert earn(decisions, settings.Env(reward=terms)).max_x == 120


def test_a_warp_is_no_clear() -> None:
    env = settings.Env(reward=TERMS)
    warped = earn([([{"world": 4, "player_state": 0x03}], 0.0)], env)
    assert (warped.outcome, warped.stages_cleared) == (Outcome.WARPED, 0)
    assert mario.ended(warped, env)
    assert not mario.ended(warped, settings.Env(stages="all"))
    assert mario.info(warped, env) == {
        "max_x": 40, "cleared": 0, "stages_cleared": 0, "warped": 1, "loops": 0, "stalled": 0,
    }  # fmt: skip


def test_score_coin_and_power_up_rewards_match_hand_computed() -> None:
    env = settings.Env(reward=settings.Reward(progress=0.0, time=0.0, score=0.01, coins=3.0, power_up=7.0))
    decisions: list[tuple[list[dict[str, Any]], float]] = [
        ([{}], 0.0),
        ([{"score": 100}, {"score": 250}], 2.5),
        ([{"score": 250, "coins": 98}], 3.0 * 98),
        ([{"score": 250, "coins": 1}], 3.0 * 3),  # 99, 0, 1
        ([{"score": 250, "coins": 1, "status": 1}], 7.0),
        ([{"score": 250, "coins": 1, "status": 2}], 7.0),
        ([{"score": 250, "coins": 1}], -14.0),
    ]
    episode = mario.begin(READING)
    for changes, expected in decisions:
        readings = [READING._replace(**change) for change in changes]
        before, episode = episode, mario.advance(episode, readings, env)
        assert mario.reward(before, episode, readings, env) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "older", "newer"),
    [
        ([{"x": 43}, {"x": 46}], 6.0, 6.0),
        ([{"x": 37}, {"x": 41}], 1.0, 1.0),  # -3 + 4; only the pixel beyond the best
        ([{"x": 37}], -3.0, 0.0),
        ([{"x": 46}, {"x": 47}], 1.0, 1.0),  # 6 pixels in a frame are no step
        ([{"time": 399}, {"time": 399}, {"time": 398}], -2.0, -2.0),
        ([{"time": 401}], 0.0, 0.0),
        ([{"x": 42, "player_state": 0x0B}], -15.0, -15.0),
        ([{"x": 42, "player_state": 0x04}], 2.0, 15.0),
        ([{"score": 200}, {"score": 300, "coins": 1}], 0.0, 2.0 + 6.0),
        ([{"status": 1}, {"status": 0}], 0.0, 0.0),
        ([{"status": 2}], 0.0, 10.0),
        ([{"coins": 4}, {"coins": 8}], 0.0, 30.0),  # clipped frame by frame
    ],
)
def test_reward_presets_match_hand_computed_values(changes: list[dict[str, Any]], older: float, newer: float) -> None:
    readings = [READING._replace(**change) for change in changes]
    before = mario.begin(READING)
    for version, expected in (("7.4", older), ("9.1", newer)):
        env = loading.load(overrides=[f"env.reward.preset=gym-super-mario-bros-{version}"]).env
        assert mario.reward(before, mario.advance(before, readings, env), readings, env) == expected


def test_stall_truncates_and_progress_resets_the_count() -> None:
    env = settings.Env(stall_limit=3)
    cut = []
    episode = mario.begin(READING)
    for x in (41, 41, 30, 42, 42, 42, 42):
        episode = mario.advance(episode, [READING._replace(x=x)], env)
        cut.append(mario.truncated(episode, env))
    assert cut == [False, False, False, False, False, False, True]


def test_a_stall_may_be_a_failure() -> None:
    env = settings.Env(stall_limit=2, stall_end="failure", max_episode_steps=2, reward=TERMS)
    episode = earn([([{}], 0.0), ([{}], -7.0)], env)
    assert mario.ended(episode, env)
    assert not mario.truncated(episode, env)
    assert mario.info(episode, env)["stalled"] == 1


def test_max_episode_steps_truncates_unless_terminated() -> None:
    env = settings.Env(stall_limit=None, max_episode_steps=2)
    one = mario.advance(mario.begin(READING), [READING], env)
    assert not mario.truncated(one, env)
    assert mario.truncated(mario.advance(one, [READING], env), env)
    assert not mario.truncated(mario.advance(one, [READING._replace(player_state=0x0B)], env), env)
    assert not mario.truncated(one, settings.Env(stall_limit=None))
