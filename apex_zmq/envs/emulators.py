"""NES emulators with a common interface, and the ROMs of the games.

FCEUmm is driven directly through the libretro C interface (libretro.h, API
version 1): RAM is a live view, and the screen is converted only when it is read.
nes-py is driven below its environment class: nes-py 8 through its C functions,
nes-py 9 through the Cython class that replaced them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from apex_zmq.envs.games import DOWN, LEFT, MARIO, RIGHT, SELECT, START, UP, A, B
from apex_zmq.envs.interface import EnvError
from apex_zmq.types import UInt8s, UInt16s

ROM_SHA256 = {
    "SuperMarioBros": "ec299b990e8bfee8ba46e3f61d63b2e1ae5b8a2e431de84e2e4bbd692dc53586",
    "SuperMarioBros2": "d133358f74e8ac78b7f61259866428770da6b84bf5dcd3645e47fc962c5ba45f",
}
RAM_BYTES = 2048
SCREEN_ROWS, SCREEN_COLUMNS = 224, 240


class Emulator(Protocol):
    """A running NES with a game. Not thread-safe."""

    @property
    def game(self) -> str:
        """Name of the game, as in `env.id`."""

    @property
    def ram(self) -> UInt8s:
        """[2048], live and writable until `close`."""

    @property
    def screen(self) -> UInt16s:
        """[224, 240] RGB565 of the last frame, a view valid until the next `step`."""

    def step(self, buttons: int) -> None:
        """Run one frame with the given buttons held, a sum of `games.BUTTONS`."""

    def close(self) -> None:
        """Free the emulator. Views of RAM and screen are invalid afterwards."""


class StatefulEmulator(Emulator, Protocol):
    """An emulator whose state can be saved as bytes and restored.

    A state does not include the screen: `screen` is valid again after the next `step`.
    """

    def power_on(self) -> None:
        """Power-cycle the emulator; the next frame is frame 0 of recorded inputs."""

    def save_state(self) -> bytes:
        """Return the emulator's state."""

    def load_state(self, state: bytes) -> None:
        """Restore a state saved by an emulator of the same class."""


def rom_path(game: str) -> Path:
    """Return the path of a game's ROM in the gym-super-mario-bros wheel, without importing the package.

    The ROM is identified by its hash: super-mario-bros-2.nes is the Lost Levels in version 7 and another game in
    version 9.

    Raises:
        EnvError: the ROM is missing, or its hash differs from `ROM_SHA256`.
    """
    for path in _package_files("gym_super_mario_bros", "_roms/*.nes", "gym-super-mario-bros"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == ROM_SHA256[game]:
            return path
    raise EnvError(f"no ROM in {path.parent} is {game} (SHA-256 {ROM_SHA256[game]}); reinstall gym-super-mario-bros")


def _package_files(package: str, pattern: str, distribution: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    if paths := [path for folder in folders for path in sorted(Path(folder).glob(pattern))]:
        return paths
    raise EnvError(f"{package}/{pattern} not found; pip install {distribution}")


# libretro.h: enum values and callback types.
_SET_PIXEL_FORMAT = 10
_SYSTEM_RAM = 2
_ENVIRONMENT = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_uint, ctypes.c_void_p)
_VIDEO = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t)
_AUDIO = ctypes.CFUNCTYPE(None, ctypes.c_int16, ctypes.c_int16)
_AUDIO_BATCH = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)
_POLL = ctypes.CFUNCTYPE(None)
_INPUT = ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_JOYPAD = (B, 0, SELECT, START, UP, DOWN, LEFT, RIGHT, A, 0, 0, 0, 0, 0, 0, 0)  # by RETRO_DEVICE_ID_JOYPAD


class _GameInfo(ctypes.Structure):
    _fields_ = (
        ("path", ctypes.c_char_p),
        ("data", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("meta", ctypes.c_char_p),
    )


_cores_loaded = itertools.count()


def core_path() -> Path:
    """Return the path of the FCEUmm core in the stable-retro wheel.

    Raises:
        EnvError: the core is missing.
    """
    return _package_files("stable_retro", "cores/fceumm_libretro.so", "stable-retro")[0]


def _load_core() -> ctypes.CDLL:
    """Load the FCEUmm library. A core keeps its state in globals, so each emulator loads a separate copy."""
    path = core_path()
    try:
        if next(_cores_loaded) == 0:
            return ctypes.CDLL(str(path))
        with tempfile.NamedTemporaryFile(suffix=path.name) as copy:
            shutil.copyfile(path, copy.name)
            return ctypes.CDLL(copy.name)
    except OSError as error:
        raise EnvError(f"cannot load {path}: {error}; reinstall stable-retro") from None


@functools.cache
def _held(buttons: int) -> tuple[int, ...]:
    return tuple(int(buttons & bit != 0) for bit in _JOYPAD)


class FCEUmm:
    """The libretro core of stable-retro's wheel; implements `StatefulEmulator`.

    Raises:
        EnvError: the core or the ROM is missing or unusable.
    """

    def __init__(self, game: str = MARIO) -> None:
        self.game = game
        rom = rom_path(game)
        data = rom.read_bytes()
        self._core = core = _load_core()
        core.retro_get_memory_data.restype = ctypes.c_void_p
        core.retro_get_memory_size.restype = ctypes.c_size_t
        core.retro_serialize_size.restype = ctypes.c_size_t
        core.retro_load_game.restype = core.retro_serialize.restype = core.retro_unserialize.restype = ctypes.c_bool
        core.retro_serialize.argtypes = core.retro_unserialize.argtypes = (ctypes.c_char_p, ctypes.c_size_t)

        self._buttons = _held(0)
        self._picture = (0, 0, 0, 0)  # address, columns, rows, bytes per row
        # The core keeps bare pointers to these callbacks, so they must outlive it. Every
        # request except the pixel format is declined: default options, no log.
        self._callbacks = {
            "environment": _ENVIRONMENT(lambda command, _: command == _SET_PIXEL_FORMAT),
            "video_refresh": _VIDEO(self._on_video),
            "audio_sample": _AUDIO(lambda left, right: None),
            "audio_sample_batch": _AUDIO_BATCH(lambda samples, count: count),
            "input_poll": _POLL(lambda: None),
            "input_state": _INPUT(lambda port, device, index, button: 0 if port else self._buttons[button]),
        }
        for name, callback in self._callbacks.items():
            getattr(core, f"retro_set_{name}")(callback)
        core.retro_init()
        cartridge = _GameInfo(str(rom).encode(), data, len(data), None)
        if not core.retro_load_game(ctypes.byref(cartridge)):
            raise EnvError(f"FCEUmm cannot load {rom}; reinstall stable-retro and gym-super-mario-bros")
        if core.retro_get_memory_size(_SYSTEM_RAM) != RAM_BYTES:
            raise EnvError("FCEUmm does not expose the NES's RAM; reinstall stable-retro")
        address = core.retro_get_memory_data(_SYSTEM_RAM)
        self._ram: UInt8s = np.frombuffer(memoryview((ctypes.c_uint8 * RAM_BYTES).from_address(address)), np.uint8)
        self._state = ctypes.create_string_buffer(core.retro_serialize_size())
        # The Lost Levels read RAM before writing it. nes-py zeroes RAM at power-on, FCEUmm does not.
        self._ram[:] = 0
        # Power-on includes one frame, as in stable-retro: recorded inputs count from the next one.
        self.step(0)
        _, columns, rows, _ = self._picture
        if rows < SCREEN_ROWS or columns < SCREEN_COLUMNS:
            raise EnvError(
                f"FCEUmm draws {rows} x {columns} pixels, {SCREEN_ROWS} x {SCREEN_COLUMNS} expected; "
                "reinstall stable-retro"
            )
        self._power_on = self.save_state()

    def _on_video(self, address: int | None, columns: int, rows: int, pitch: int) -> None:
        if address is not None:
            self._picture = (address, columns, rows, pitch)

    @property
    def ram(self) -> UInt8s:
        """As `Emulator.ram`."""
        return self._ram

    @property
    def screen(self) -> UInt16s:
        """As `Emulator.screen`; overscan, if the core draws it, is cropped evenly."""
        address, columns, rows, pitch = self._picture
        top, left = (rows - SCREEN_ROWS) // 2, (columns - SCREEN_COLUMNS) // 2
        memory = memoryview((ctypes.c_uint8 * (rows * pitch)).from_address(address))
        pixels: UInt16s = np.frombuffer(memory, np.uint16).reshape(rows, pitch // 2)
        return pixels[top : top + SCREEN_ROWS, left : left + SCREEN_COLUMNS]

    def step(self, buttons: int) -> None:
        """As `Emulator.step`."""
        self._buttons = _held(buttons)
        self._core.retro_run()

    def power_on(self) -> None:
        """As `StatefulEmulator.power_on`."""
        self.load_state(self._power_on)

    def save_state(self) -> bytes:
        """As `StatefulEmulator.save_state`.

        Raises:
            EnvError: the core failed to save it.
        """
        if not self._core.retro_serialize(self._state, len(self._state)):
            raise EnvError("FCEUmm could not save its state; reinstall stable-retro")
        return self._state.raw

    def load_state(self, state: bytes) -> None:
        """As `StatefulEmulator.load_state`.

        Raises:
            EnvError: the bytes are not a state of this core.
        """
        if len(state) != len(self._state) or not self._core.retro_unserialize(state, len(state)):
            raise EnvError(
                f"{len(state)} bytes are not a state of this version of FCEUmm; save the state again with it"
            )

    def close(self) -> None:
        """As `Emulator.close`."""
        self._core.retro_unload_game()
        self._core.retro_deinit()


class NESPy:
    """The emulator inside nes-py's environments; implements `Emulator`.

    The state cannot be exported: each emulator has one internal backup slot.
    nes-py has its own palette, so colours differ from FCEUmm's.

    Raises:
        EnvError: nes-py or the ROM is missing or unusable.
    """

    def __init__(self, game: str = MARIO) -> None:
        self.game = game
        self._native = native = _native_emulator(str(rom_path(game)))
        native.reset()
        self._ram: UInt8s = native.ram_buffer()
        rgb: UInt8s = native.screen_buffer()
        top, left = (rgb.shape[0] - SCREEN_ROWS) // 2, (rgb.shape[1] - SCREEN_COLUMNS) // 2
        self._rgb = rgb[top : top + SCREEN_ROWS, left : left + SCREEN_COLUMNS]

    @property
    def ram(self) -> UInt8s:
        """As `Emulator.ram`."""
        return self._ram

    @property
    def screen(self) -> UInt16s:
        """As `Emulator.screen`: the same area as FCEUmm's, copied."""
        red, green, blue = (self._rgb[..., channel].astype(np.uint16) for channel in range(3))
        pixels: UInt16s = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype(np.uint16, copy=False)
        return pixels

    def step(self, buttons: int) -> None:
        """As `Emulator.step`."""
        self._native.frame_advance(buttons)

    def backup(self) -> None:
        """Save the state, screen included, in the backup slot."""
        self._native.backup()

    def restore(self) -> None:
        """Restore the state in the backup slot."""
        self._native.restore()

    def close(self) -> None:
        """As `Emulator.close`."""
        self._native.close()


def _native_emulator(rom: str) -> Any:
    """Return nes-py's emulator, with the methods of `nes_py._native.NativeEmulator`."""
    if importlib.util.find_spec("nes_py") is None:
        raise EnvError("nes_py not found; pip install nes-py")
    try:
        library, *_ = _package_files("nes_py", "lib_nes_env*", "nes-py")
    except EnvError:
        return importlib.import_module("nes_py._native").NativeEmulator(rom)
    return _NativeEmulator8(library, rom)


class _NativeEmulator8:
    """nes-py 8's C functions behind the interface of nes-py 9's class; importing nes-py 8 would import legacy gym."""

    def __init__(self, library: Path, rom: str) -> None:
        try:
            self._library = functions = ctypes.CDLL(str(library))
        except OSError as error:
            raise EnvError(f"cannot load {library}: {error}; reinstall nes-py") from None
        functions.Initialize.argtypes = (ctypes.c_wchar_p,)
        functions.Controller.argtypes = (ctypes.c_void_p, ctypes.c_uint)
        for name in ("Initialize", "Screen", "Memory", "Controller"):
            getattr(functions, name).restype = ctypes.c_void_p
        for name in ("Screen", "Memory", "Reset", "Step", "Backup", "Restore", "Close"):
            getattr(functions, name).argtypes = (ctypes.c_void_p,)
        self._machine = functions.Initialize(rom)
        self._controller = ctypes.c_uint8.from_address(functions.Controller(self._machine, 0))

    def ram_buffer(self) -> UInt8s:
        return self._view(self._library.Memory(self._machine), RAM_BYTES)

    def screen_buffer(self) -> UInt8s:
        """[240, 256, 3] RGB view; in memory a pixel is B, G, R and a padding byte."""
        rows, columns = self._library.Height(), self._library.Width()
        pixels = self._view(self._library.Screen(self._machine), rows * columns * 4)
        return pixels.reshape(rows, columns, 4)[..., 2::-1]

    def _view(self, address: int, size: int) -> UInt8s:
        return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)

    def frame_advance(self, buttons: int) -> None:
        self._controller.value = buttons
        self._library.Step(self._machine)

    def reset(self) -> None:
        self._library.Reset(self._machine)

    def backup(self) -> None:
        self._library.Backup(self._machine)

    def restore(self) -> None:
        self._library.Restore(self._machine)

    def close(self) -> None:
        self._library.Close(self._machine)
