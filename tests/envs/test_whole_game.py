"""Episodes of several stages and lives, and the Lost Levels."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apex_zmq.config.settings import Env, Reward
from apex_zmq.envs import emulators, mario
from apex_zmq.envs.emulators import FCEUmm, NESPy
from apex_zmq.envs.games import MARIO
from apex_zmq.envs.games import stages as stages_of
from apex_zmq.envs.interface import EnvError, Step
from apex_zmq.envs.lanes import MarioLanes
from apex_zmq.envs.machines import MachinePerLane, Machines, SharedMachine
from apex_zmq.envs.mario import Outcome

CLEARS = json.loads((Path(__file__).parents[1] / "data/mario-1-1-clears.json").read_text())
LOST_LEVELS = "SuperMarioBros2"
BUTTONS = {128: "right", 64: "left", 32: "down", 16: "up", 2: "B", 1: "A"}
TERMS = Reward(progress=0.0, time=0.0, death=-3.0, clear=5.0, score=0.001)
PLAYER_STATE, MODE, TASK, CASTLE = 0x0E, 0x770, 0x772, 0x746
AREA_TYPE, UNDERGROUND = 0x74E, 2


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    shared = SharedMachine(FCEUmm())
    yield shared
    shared.close()


def episode(machines: Machines, **settings: Any) -> MarioLanes:
    """One lane in an episode of its own, walking right with action 0."""
    walk: dict[str, Any] = {"actions": (("right",),), "noop_max": 0, "reward": TERMS}
    lanes = MarioLanes(Env(**(walk | settings)), 1, 0, machines)
    lanes.reset(0)
    return lanes


def steps(lanes: MarioLanes) -> list[Step]:
    """What is left of the episode."""
    seen = [lanes.step(0, 0)]
    while not (seen[-1].terminated or seen[-1].truncated):
        seen.append(lanes.step(0, 0))
    return seen


def finish_stage(machine: emulators.Emulator) -> None:
    """Have the game believe that the player is in the castle and all is counted."""
    machine.ram[PLAYER_STATE], machine.ram[CASTLE] = 5, 5


def told(stage: str, max_x: int, cleared: bool, stages_cleared: int = 0) -> tuple[str, dict[str, float]]:
    """Stage and info of a step."""
    nothing = dict.fromkeys(("warped", "loops", "stalled"), 0.0)
    return stage, {"max_x": max_x, "cleared": cleared, "stages_cleared": stages_cleared, **nothing}


def test_recorded_clear_leads_to_1_2_and_third_death_terminates(machines: Machines) -> None:
    first, play = CLEARS["first_playable_frame"], CLEARS["plays"][1]
    inputs = bytes.fromhex(play["inputs"])[first : play["flag_frame"] + 1]
    pressed = [128, *sorted(set(inputs) - {128})]
    actions = tuple(tuple(name for bit, name in BUTTONS.items() if byte & bit) or ("NOOP",) for byte in pressed)
    lanes = episode(machines, stages="all", lives=3, frame_skip=1, actions=actions)
    played = [lanes.step(0, pressed.index(byte)) for byte in inputs]
    assert not any(step.terminated or step.truncated for step in played)
    assert {step.stage for step in played[:-1]} == {"1-1"}
    before, flag = played[-2:]
    assert (before.stage, before.info) == told("1-1", 3157, cleared=False)
    # The 16,900 points for flag and clock are counted while the game ignores the player.
    assert flag.reward == pytest.approx(5.0)
    assert (flag.stage, flag.info) == told("1-2", 40, cleared=False, stages_cleared=1)
    ram = machines.of(0).ram
    assert mario.obeys(ram)
    now = mario.read(ram)
    assert (now.world, now.stage, ram[AREA_TYPE]) == (1, 2, UNDERGROUND)  # behind the walk into the pipe
    rest = steps(lanes)
    deaths = [index for index, step in enumerate(rest) if step.reward < -1]
    assert [rest[index].reward for index in deaths] == [-3.0] * 3
    assert [rest[index].terminated for index in deaths] == [False, False, True]
    assert 80 < deaths[1] - deaths[0] < 110  # the next life walks the same way
    assert (rest[deaths[0]].stage, rest[deaths[0]].info) == told("1-2", 40, cleared=False, stages_cleared=1)
    assert rest[-1].stage == "1-2"
    assert 180 < rest[-1].info["max_x"] < 200
    with pytest.raises(EnvError, match="reset"):
        lanes.step(0, 0)


def test_death_with_one_life_ends_the_whole_game(machines: Machines) -> None:
    seen = steps(episode(machines, stages="all"))
    assert seen[-1].terminated
    assert (seen[-1].stage, seen[-1].info, seen[-1].reward) == (*told("1-1", 298, cleared=False), -3.0)
    single = steps(episode(machines))
    assert [step[1:] for step in single] == [step[1:] for step in seen]


def test_third_death_or_clear_ends_a_stage_with_three_lives(machines: Machines) -> None:
    lanes = episode(machines, lives=3)
    seen = steps(lanes)
    assert [step.reward for step in seen if step.reward] == [-3.0] * 3
    assert (seen[-1].stage, seen[-1].info) == told("1-1", 298, cleared=False)
    lanes.reset(0)
    machines.of(0).ram[MODE], machines.of(0).ram[TASK] = 2, 2  # the axe is taken
    cleared = lanes.step(0, 0)
    assert cleared.terminated
    assert cleared.reward == 5.0
    assert (cleared.stage, cleared.info) == told("1-1", 40, cleared=True, stages_cleared=1)


@pytest.mark.parametrize("kind", ["fceumm", "nes-py"])
@pytest.mark.parametrize("game", [MARIO, LOST_LEVELS])
def test_cleared_stage_leads_to_the_next_on_both_emulators(game: str, kind: str) -> None:
    own: Machines = SharedMachine(FCEUmm(game)) if kind == "fceumm" else MachinePerLane(game)
    lanes = episode(own, id=game, stages="all", max_pool=True, max_episode_steps=2)
    finish_stage(own.of(0))
    step = lanes.step(0, 0)
    assert (step.reward, step.terminated, step.truncated) == (5.0, False, False)
    assert (step.stage, step.info) == told("1-2", 40, cleared=False, stages_cleared=1)
    now = mario.read(own.of(0).ram)
    assert (now.world, now.stage, now.time, now.lives) == (1, 2, 400, 2)
    assert lanes.step(0, 0).truncated  # the decisions of an episode are counted over its stages
    own.close()


def test_a_castle_leads_to_the_next_world(machines: Machines) -> None:
    machines.start(0, "1-4")
    machine = machines.of(0)
    machine.ram[MODE], machine.ram[TASK] = 2, 4
    assert len(list(mario.wait(machine))) > 100
    now = mario.read(machine.ram)
    assert (now.world, now.stage, now.x) == (2, 1, 40)


@pytest.mark.parametrize("stages", ["all", ("1-1",)])
def test_the_way_through_a_pipe_is_part_of_a_decision(stages: str | tuple[str, ...], machines: Machines) -> None:
    lanes = episode(machines, stages=stages)
    machines.of(0).ram[PLAYER_STATE] = 3
    step = lanes.step(0, 0)
    assert (step.terminated, step.stage, mario.obeys(machines.of(0).ram)) == (False, "1-1", True)


@pytest.mark.parametrize(
    ("outcome", "world", "left", "settings", "expected"),
    [
        (Outcome.PLAYING, 8, 0, {}, False),
        (Outcome.DEAD, 1, 2, {}, True),
        (Outcome.DEAD, 1, 2, {"lives": 3}, False),
        (Outcome.DEAD, 1, 0, {"lives": 3}, True),
        (Outcome.DEAD, 1, 2, {"stages": "all"}, True),
        (Outcome.DEAD, 1, 1, {"stages": "all", "lives": 3}, False),
        (Outcome.CLEARED, 1, 2, {}, True),
        (Outcome.CLEARED, 1, 2, {"lives": 3}, True),
        (Outcome.CLEARED, 1, 2, {"stages": "all"}, False),
        (Outcome.CLEARED, 4, 2, {"stages": "all"}, False),
        (Outcome.CLEARED, 8, 0, {"stages": "all"}, True),
        (Outcome.CLEARED, 4, 2, {"stages": "all", "id": LOST_LEVELS}, True),
        (Outcome.CLEARED, 3, 2, {"stages": "all", "id": LOST_LEVELS}, False),
        (Outcome.WARPED, 1, 2, {}, True),
        (Outcome.WARPED, 1, 2, {"stages": "all"}, False),
    ],
)
def test_episode_end_follows_outcome_world_and_lives(
    outcome: Outcome, world: int, left: int, settings: dict[str, Any], expected: bool
) -> None:
    now = mario.Reading(40, 1, False, 8, 0, left, world, 4, 4, 1, 300, 0, 0, True)
    assert mario.ended(mario.begin(now)._replace(outcome=outcome), Env(**settings)) is expected


def test_game_that_never_accepts_input_again_is_an_error(machines: Machines, monkeypatch: Any) -> None:
    monkeypatch.setattr(mario, "_IGNORING_FRAMES_MAX", 50)
    machines.start(0, "1-1")
    machines.of(0).ram[PLAYER_STATE] = 4
    with pytest.raises(EnvError, match="ignored the player for 50 frames"):
        list(mario.wait(machines.of(0)))


def test_every_stage_of_the_lost_levels_starts() -> None:
    machine = FCEUmm(LOST_LEVELS)
    found = stages_of(LOST_LEVELS)
    assert (len(found), found[-1]) == (16, "4-4")
    for stage in found:
        machine.load_state(mario.start_state(machine, stage).state)
        start = mario.read(machine.ram)
        assert f"{start.world}-{start.stage}" == stage
        assert (start.x, start.y_page, start.lives, start.mode, start.player_state) == (40, 1, 2, 1, 8)
        assert start.time in (300, 400)  # 290 where RAM is not zero at power-on
        area_type = machine.ram[0x74E]  # 0 water, 1 ground, 2 underground, 3 castle
        assert area_type == {"1-2": 2, "3-2": 0}.get(stage, 3 if stage.endswith("4") else 1)
    with pytest.raises(EnvError, match="no stage '5-1' in SuperMarioBros2; stages run from 1-1 to 4-4"):
        mario.start_state(machine, "5-1")
    machine.close()


def test_the_start_of_the_lost_levels_is_the_same_on_nes_py() -> None:
    one, other = FCEUmm(LOST_LEVELS), NESPy(LOST_LEVELS)
    mario.play_to_start(one, "1-1")
    mario.play_to_start(other, "1-1")
    assert mario.read(one.ram) == mario.read(other.ram)
    one.close()
    other.close()


def test_rom_is_identified_by_its_checksum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in gym-super-mario-bros 9, where the name that version 7 gave the Lost Levels is another game's."""
    roms = tmp_path / "_roms"
    roms.mkdir()
    (roms / "super-mario-bros-lost-levels.nes").write_bytes(emulators.rom_path(LOST_LEVELS).read_bytes())
    (roms / "super-mario-bros-2.nes").write_bytes(b"another game")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    assert emulators.rom_path(LOST_LEVELS).name == "super-mario-bros-lost-levels.nes"
    with pytest.raises(EnvError, match=r"no ROM .* is SuperMarioBros "):
        emulators.rom_path(MARIO)
