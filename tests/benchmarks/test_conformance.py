"""Our rules against gym-super-mario-bros' own environment, and the two emulators against each other."""

from __future__ import annotations

import re
from typing import Any

import pytest

from apex_zmq.envs.emulators import FCEUmm, NESPy
from apex_zmq.envs.games import MARIO
from benchmarks import conformance
from benchmarks.conformance import RECORDED, Comparison

FIRST = RECORDED["first_playable_frame"]
LOST_LEVELS = "SuperMarioBros2"


@pytest.fixture(autouse=True)
def _needs_the_package(request: pytest.FixtureRequest) -> None:
    if "package" in request.node.name:
        try:
            conformance.package_class()
        except ImportError as error:
            pytest.skip(f"gym-super-mario-bros does not import here: {error}")


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(play, marks=[] if number == 1 else pytest.mark.long)
        for number, play in enumerate(RECORDED["plays"])
    ],
    ids=lambda play: f"flag{play['flag_frame']}",
)
def test_recorded_plays_match_the_package_at_every_frame(play: dict[str, Any]) -> None:
    inputs = conformance.held_on(play)
    theirs = conformance.play_package(inputs, FIRST)
    machine = NESPy()
    ours = conformance.play_ours(machine, inputs, FIRST, conformance.package_env())
    machine.close()
    assert ours == theirs
    assert theirs[-1].fields.flag
    assert theirs[-1].fields.x == 3161
    assert len(theirs) > 1000


@pytest.mark.parametrize(("game", "frames"), [pytest.param(MARIO, 3000, marks=pytest.mark.long), (LOST_LEVELS, 330)])
def test_whole_game_matches_the_package_at_every_frame(game: str, frames: int) -> None:
    inputs, first = conformance.whole_inputs(game, frames)
    theirs = conformance.play_package(inputs, first, game, None)
    machine = NESPy(game)
    env = conformance.package_env(id=game, stages="all", lives=3)
    ours = conformance.play_ours(machine, inputs, first, env, cut=True)
    machine.close()
    # The package ends one step after the last touch.
    assert conformance.comparable(ours) == conformance.comparable(theirs[: len(ours)])
    assert {each.fields.lives for each in ours} >= {2, 1}
    if game == MARIO:
        assert ours[-1].ended
        assert {each.fields.lives for each in ours} == {2, 1, 0}
        assert theirs[len(ours)].ended
        assert theirs[len(ours)].fields.lives == 255


@pytest.mark.parametrize(
    ("game", "stage", "differs"), [(MARIO, "1-2", 72), (MARIO, "2-4", None), (LOST_LEVELS, "1-1", 92)]
)
def test_a_scripted_play_is_the_same_on_both_emulators(game: str, stage: str, differs: int | None) -> None:
    """But for a frame's lag of the buttons, and for the frame counter at the start."""
    machine = FCEUmm(game)
    compared = conformance.compare(machine, stage, 160)
    machine.close()
    assert compared.frames > 70
    assert compared.end == "dead"
    assert compared.differs == differs
    assert compared.differs_with_its_counter is None


def test_report_counts_equal_stages() -> None:
    compared = [Comparison("1-1", 30, "playing", None, None), Comparison("1-2", 31, "dead", 5, None)]
    text = conformance.report(["| a row |"], ["| another |"], {MARIO: compared}, 31)
    assert re.findall(r"\b\d of 2\b", text) == ["1 of 2", "2 of 2"]
    assert "| SuperMarioBros 1-2 | 31 | dead | 5 |  |" in text
    assert "| a row |" in text
    assert "| another |" in text
    assert conformance.first_difference("abcd", "abxd") == 2
    assert conformance.first_difference("abc", "ab") == 2
