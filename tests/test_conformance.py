"""Our rules against gym-super-mario-bros' own environment, and the two emulators against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from apex_zmq.envs.emulators import FCEUmm, NESPy
from apex_zmq.envs.machines import MachinePerLane, Machines, SharedMachine
from apex_zmq.envs.mario import Outcome
from benchmarks import conformance
from benchmarks.conformance import RECORDED, Seen

FIRST = RECORDED["first_playable_frame"]


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machines, Machines]]:
    shared, own = SharedMachine(FCEUmm()), MachinePerLane()
    yield shared, own
    shared.close()
    own.close()


@pytest.mark.parametrize("play", RECORDED["plays"], ids=lambda play: f"flag{play['flag_frame']}")
def test_recorded_plays_are_the_packages_own_at_every_frame(play: dict[str, Any]) -> None:
    try:
        conformance.package_class()
    except ImportError as error:
        pytest.skip(f"gym-super-mario-bros does not import here: {error}")
    inputs = conformance.held_on(play)
    theirs = conformance.play_package(inputs, FIRST)
    machine = NESPy()
    ours = conformance.play_ours(machine, inputs, FIRST, conformance.package_preset())
    machine.close()
    assert ours == theirs
    assert theirs[-1].fields.flag
    assert theirs[-1].fields.x == 3161
    assert len(theirs) > 1000


@pytest.mark.parametrize("stage", ["1-1", "8-4"])
def test_a_scripted_play_is_the_same_on_both_emulators(machines: tuple[Machines, Machines], stage: str) -> None:
    played = [conformance.play_script(each, stage, 400) for each in machines]
    compared = conformance.compare(stage, *played)
    assert compared.differs == {}
    assert (compared.leads["x"], compared.leads["time"]) == (1, 0)
    assert compared.frames > 60


def seen(x: int, counter: int, outcome: Outcome = Outcome.PLAYING) -> Seen:
    ram = bytearray(2048)
    ram[conformance.FRAME_COUNTER], ram[0x86] = counter, x % 256
    return Seen(conformance.Fields(x, 2, 400, 0, 0, False), outcome, bytes(ram))


def test_a_comparison_finds_lead_and_difference() -> None:
    fceumm = [seen(x, x % 256) for x in range(250, 260)]
    late = [seen(249, 249), *fceumm]
    compared = conformance.compare("1-1", fceumm, late)
    assert (compared.frames, compared.end, compared.leads["x"], compared.differs) == (10, "playing", 1, {})
    lagging = [*late[:5], late[4], *late[5:]]
    compared = conformance.compare("1-1", fceumm, lagging)
    assert (compared.differs, compared.counters) == ({"x": 4}, (4, 4))
    assert conformance.compare("1-1", fceumm, [*fceumm, fceumm[-1]]).leads["x"] == 0
    dead = [*fceumm[:-1], fceumm[-1]._replace(outcome=Outcome.DEAD)]
    compared = conformance.compare("1-1", dead, [*late, late[-1]])
    assert (compared.end, compared.differs) == ("dead", {"outcome": 9})
    text = conformance.report([], [compared], 10)
    assert "| 1-1 | 10 | dead |  | outcome 9 | 9, 9 |" in text
    assert "0 of 1 stages" in text
