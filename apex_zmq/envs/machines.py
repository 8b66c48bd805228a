"""Emulators of the lanes: one shared by all lanes, or one per lane and stage."""

from __future__ import annotations

import logging
from typing import Protocol

from apex_zmq.envs import mario
from apex_zmq.envs.emulators import Emulator, FCEUmm, NESPy, StatefulEmulator, core_path
from apex_zmq.envs.games import MARIO
from apex_zmq.envs.interface import EnvError
from apex_zmq.types import UInt16s

log = logging.getLogger(__name__)


class Machines(Protocol):
    """Running games, one per lane. Not thread-safe."""

    def start(self, lane: int, stage: str) -> UInt16s:
        """Start a lane's game at the first playable frame of a stage; return its screen, [224, 240] RGB565.

        Raises:
            EnvError: the stage does not exist, or the game did not reach it.
        """

    def of(self, lane: int) -> Emulator:
        """Return the emulator that holds a started lane's game; valid until the next call for another lane."""

    def close(self) -> None:
        """Close every emulator."""


def make_machines(kind: str, game: str = MARIO) -> Machines:
    """Make the emulators that `env.emulator` names; auto: FCEUmm if installed, else nes-py with a warning.

    Raises:
        EnvError: the emulator or the game is not installed.
    """
    if kind == "auto":
        try:
            core_path()
        except EnvError as error:
            log.warning("playing on nes-py, several times slower than FCEUmm: %s", error)
            kind = "nes-py"
    return MachinePerLane(game) if kind == "nes-py" else SharedMachine(FCEUmm(game))


class SharedMachine:
    """All lanes share one emulator by swapping its state; implements `Machines`."""

    def __init__(self, emulator: StatefulEmulator) -> None:
        self._emulator = emulator
        self._parked: dict[int, bytes] = {}
        self._resident: int | None = None  # the lane whose state is loaded

    def start(self, lane: int, stage: str) -> UInt16s:
        """As `Machines.start`."""
        self._park()
        start = mario.start_state(self._emulator, stage)
        self.restore(lane, start.state)
        return start.screen

    def of(self, lane: int) -> Emulator:
        """As `Machines.of`."""
        if self._resident != lane:
            self.restore(lane, self._parked[lane])
        return self._emulator

    def save(self) -> bytes:
        """Return the state of the lane whose turn it is."""
        return self._emulator.save_state()

    def restore(self, lane: int, state: bytes) -> None:
        """Continue a saved game in a lane; its screen is valid after the next frame."""
        self._park()
        self._emulator.load_state(state)
        self._resident = lane

    def _park(self) -> None:
        if self._resident is not None:
            self._parked[self._resident] = self._emulator.save_state()
            self._resident = None

    def close(self) -> None:
        """As `Machines.close`."""
        self._emulator.close()


class MachinePerLane:
    """One nes-py emulator per lane and stage, whose backup slot holds the stage's start; implements `Machines`.

    An emulator is created when its lane first draws its stage.
    """

    def __init__(self, game: str = MARIO) -> None:
        self._game = game
        self._machines: dict[tuple[int, str], NESPy] = {}
        self._current: dict[int, NESPy] = {}

    def start(self, lane: int, stage: str) -> UInt16s:
        """As `Machines.start`."""
        key = lane, stage
        if key in self._machines:
            self._machines[key].restore()
        else:
            machine = NESPy(self._game)
            mario.play_to_start(machine, stage)
            machine.backup()
            self._machines[key] = machine
        self._current[lane] = self._machines[key]
        return self._machines[key].screen

    def of(self, lane: int) -> Emulator:
        """As `Machines.of`."""
        return self._current[lane]

    def close(self) -> None:
        """As `Machines.close`."""
        for machine in self._machines.values():
            machine.close()
