"""The rules on recorded plays of every kind of way through a stage, on both emulators.

`python -m benchmarks.search` made the plays: buttons of each frame from the stage's start, for FCEUmm with the frame
counter of nes-py, which takes them a frame earlier.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from apex_zmq.config.settings import Env, Reward
from apex_zmq.envs import mario
from apex_zmq.envs.emulators import Emulator, FCEUmm, NESPy
from apex_zmq.envs.mario import Episode, Outcome, Reading

PLAYS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data/mario-plays.json").read_text())
FRAME_COUNTER = 0x09
STANDING = Env(reward=Reward(progress_standing=True))


class Played(NamedTuple):
    """A play: its readings, and its account after every frame, by default rules and with progress of standing only."""

    readings: list[Reading]
    accounts: list[Episode]
    standing: list[Episode]


def play(machine: Emulator, buttons: bytes) -> Played:
    readings = [mario.read(machine.ram)]
    accounts = [mario.begin(readings[0])]
    standing = [mario.begin(readings[0])]
    for held in buttons:
        machine.step(held)
        readings.append(mario.read(machine.ram))
        accounts.append(mario.advance(accounts[-1], readings[-1:], Env()))
        standing.append(mario.advance(standing[-1], readings[-1:], STANDING))
    return Played(readings, accounts, standing)


@functools.cache
def play_on(emulator: str, kind: str) -> Played:
    recorded = PLAYS[kind]
    buttons = bytes.fromhex(recorded["buttons"])
    if emulator == "nes-py":
        own = NESPy()
        mario.play_to_start(own, recorded["stage"])
        played = play(own, buttons[1:] + buttons[-1:])
        own.close()
        return played
    machine = FCEUmm()
    machine.load_state(mario.start_state(machine, recorded["stage"]).state)
    machine.ram[FRAME_COUNTER] = recorded["counter"]
    played = play(machine, buttons)
    machine.close()
    return played


@pytest.fixture(scope="module", params=["fceumm", "nes-py"])
def plays(request: pytest.FixtureRequest) -> dict[str, Played]:
    return {kind: play_on(request.param, kind) for kind in PLAYS}


def end(played: Played) -> Episode:
    assert all(each.outcome is Outcome.PLAYING for each in played.accounts[:-1])
    return played.accounts[-1]


def test_exit_pipe_leads_to_new_ground_and_to_the_flag(plays: dict[str, Played]) -> None:
    played = plays["pipe exit"]
    last = end(played)
    assert last.outcome is Outcome.CLEARED
    main, exit_area = last.ground  # the order of entry
    (entry,) = (index for index, each in enumerate(played.accounts) if each.new_areas)
    assert played.readings[entry].area == exit_area
    assert played.readings[entry].x > last.ground[main]  # so x alone would take the pipe for a jump of 200 pixels
    paid = sum(each.new_ground for each in played.accounts[entry:])
    assert paid == last.ground[exit_area] - played.readings[entry].x == 289
    assert (last.max_x, last.loops) == (last.ground[exit_area], 0)


def test_swimming_counts_as_standing(plays: dict[str, Played]) -> None:
    last = end(plays["water"])
    assert last.outcome is Outcome.CLEARED
    (swum, exited) = last.ground.values()
    assert plays["water"].standing[-1].ground[next(iter(last.ground))] > 0.98 * swum
    assert exited > 100


def test_warp_ends_a_stage_without_clearing_it(plays: dict[str, Played]) -> None:
    last = end(plays["warp"])
    assert (last.outcome, last.stages_cleared) == (Outcome.WARPED, 0)
    assert mario.ended(last, Env())


def test_loop_back_is_counted_and_leaves_the_largest_x(plays: dict[str, Played]) -> None:
    played = plays["loop"]
    last = end(played)
    assert (last.outcome, last.loops) == (Outcome.PLAYING, 1)
    (at,) = (index for index, each in enumerate(played.accounts) if each.looped)
    before, after = (reading.x for reading in played.readings[at - 1 : at + 1])
    assert before - after == pytest.approx(1024, abs=8)
    assert after < 0
    assert last.max_x == before
    assert played.accounts[at].new_ground == 0
    assert mario.ended(played.accounts[at], Env(loop_ends=True))


def test_springboard_leads_over_the_wall(plays: dict[str, Played]) -> None:
    last = end(plays["springboard"])
    assert last.outcome is Outcome.CLEARED
    assert last.max_x > 3_040  # the wall behind the springboard


def test_progress_of_standing_differs_from_any_by_the_last_jump_at_most(plays: dict[str, Played]) -> None:
    for played in plays.values():
        assert abs(played.standing[-1].distance - played.accounts[-1].distance) < 256


@pytest.mark.parametrize("kind", PLAYS)
def test_both_emulators_give_the_same_account(kind: str) -> None:
    ours, theirs = (play_on(emulator, kind).accounts[-1] for emulator in ("fceumm", "nes-py"))
    assert ours == theirs
