from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from apex_zmq.envs import emulators
from apex_zmq.envs.emulators import Emulator, FCEUmm, NESPy, rom_path
from apex_zmq.envs.games import RIGHT, START
from apex_zmq.envs.interface import EnvError

# To the title, START, then right in bursts: 260 frames.
INPUTS = [0] * 60 + [START] + [0] * 146 + [RIGHT, RIGHT, 0] * 18


@pytest.fixture(scope="module")
def emulator() -> Iterator[FCEUmm]:
    machine = FCEUmm()
    yield machine
    machine.close()


def play(emulator: Emulator, inputs: list[int]) -> list[tuple[bytes, bytes]]:
    trace = []
    for buttons in inputs:
        emulator.step(buttons)
        trace.append((emulator.ram.tobytes(), emulator.screen.tobytes()))
    return trace


def test_buttons_reach_the_game(emulator: FCEUmm) -> None:
    emulator.power_on()
    mode = [ram[0x770] for ram, _ in play(emulator, INPUTS)]
    assert mode[59] == 0
    assert mode[60] == 1
    assert emulator.ram[0x86] > 40  # where the level begins


def test_a_loaded_state_continues_as_the_saved_machine_did(emulator: FCEUmm) -> None:
    emulator.power_on()
    play(emulator, INPUTS[:220])
    state = emulator.save_state()
    once = play(emulator, INPUTS[220:])
    emulator.power_on()
    emulator.load_state(state)
    assert play(emulator, INPUTS[220:]) == once


def test_instances_are_independent_and_power_on_identically(emulator: FCEUmm) -> None:
    play(emulator, INPUTS[:100])
    before = emulator.ram.copy()
    fresh = FCEUmm()
    trace = play(fresh, INPUTS[:70])
    np.testing.assert_array_equal(emulator.ram, before)
    emulator.power_on()
    assert play(emulator, INPUTS[:70]) == trace
    fresh.load_state(emulator.save_state())
    assert play(fresh, INPUTS[70:90]) == play(emulator, INPUTS[70:90])
    fresh.close()


def test_ram_is_live_and_writable(emulator: FCEUmm) -> None:
    emulator.power_on()
    ram = emulator.ram
    play(emulator, INPUTS)
    assert (ram.shape, ram.dtype.name) == ((2048,), "uint8")
    ram[0x75A] = 77
    state = emulator.save_state()
    ram[0x75A] = 2
    emulator.load_state(state)
    assert ram[0x75A] == 77


def test_the_screen_shows_the_level(emulator: FCEUmm) -> None:
    emulator.power_on()
    play(emulator, INPUTS)
    screen = emulator.screen
    assert (screen.shape, screen.dtype.name) == ((224, 240), "uint16")
    red, green, blue = (int(v) for v in (screen[60, 5] >> 11, screen[60, 5] >> 5 & 63, screen[60, 5] & 31))
    assert blue > red  # the sky
    assert blue > green // 2
    assert len(np.unique(screen[:32])) > 2  # the HUD's lettering


def test_a_foreign_state_is_refused(emulator: FCEUmm) -> None:
    with pytest.raises(EnvError, match="not a state"):
        emulator.load_state(b"\0" * 100)


def test_rom_with_another_checksum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(emulators.ROM_SHA256, "SuperMarioBros", "0" * 64)
    with pytest.raises(EnvError, match=r"no ROM in .* is SuperMarioBros .*; reinstall"):
        rom_path("SuperMarioBros")


def test_nes_py_restores_ram_and_screen_from_its_backup() -> None:
    machine = NESPy()
    ram = machine.ram
    assert (ram.shape, ram.dtype.name) == ((2048,), "uint8")
    for buttons in INPUTS[:230]:
        machine.step(buttons)
    screen = machine.screen
    ram[0x75A] = 77
    machine.backup()
    traces = []
    for _ in range(2):
        traces.append(play(machine, INPUTS[230:]))
        assert ram[0x86] > 40
        machine.restore()
        assert ram[0x75A] == 77
        np.testing.assert_array_equal(machine.screen, screen)
    assert traces[0] == traces[1]
    machine.close()


def test_nes_py_machines_are_independent() -> None:
    one, other = NESPy(), NESPy()
    for buttons in INPUTS[:100]:
        one.step(buttons)
    before = one.ram.copy()
    for _ in range(5):
        other.step(0)
    np.testing.assert_array_equal(one.ram, before)
    one.close()
    other.close()


def test_both_emulators_show_the_same_area(emulator: FCEUmm) -> None:
    """Palettes differ: where a colour changes along a row, it changes on both."""
    emulator.power_on()
    machine = NESPy()
    for buttons in INPUTS[:230]:
        emulator.step(buttons)
        machine.step(buttons)
    ours, theirs = emulator.screen, machine.screen
    assert (theirs.shape, theirs.dtype.name) == ((224, 240), "uint16")
    edges = [screen[:, 1:] != screen[:, :-1] for screen in (ours, theirs)]
    assert np.mean(edges[0] == edges[1]) > 0.99
    assert edges[0].mean() > 0.02
    machine.close()
