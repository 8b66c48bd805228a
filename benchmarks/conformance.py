"""Do our rules agree with gym-super-mario-bros, and the two emulators with each other?

python -m benchmarks.conformance [--frames N] [STAGE ...] plays and writes docs/CONFORMANCE.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apex_zmq import config, configure
from apex_zmq.envs import mario
from apex_zmq.envs.emulators import Emulator, FCEUmm, NESPy
from apex_zmq.envs.machines import MachinePerLane, Machines, SharedMachine
from apex_zmq.envs.mario import Outcome

ROOT = Path(__file__).parents[1]
RECORDED = json.loads((ROOT / "tests/data/mario-1-1-clears.json").read_text())
PACKAGES = ("gym-super-mario-bros", "nes-py", "stable-retro", "numpy")
FRAME_COUNTER = 0x09  # the game counts the frames in which its main loop ran to the end


class Fields(NamedTuple):
    """What is compared at every frame; flag: the stage is cleared."""

    x: int
    lives: int
    time: int
    coins: int
    score: int
    flag: bool


class Played(NamedTuple):
    """One frame of a recorded play."""

    fields: Fields
    reward: float  # of the package's own kind
    ended: bool


def fields(start: mario.Reading, now: mario.Reading) -> Fields:
    """The fields as our rules read them."""
    return Fields(now.x, now.lives, now.time, now.coins, now.score, mario.outcome(start, now) is Outcome.CLEARED)


def held_on(play: Mapping[str, Any]) -> bytes:
    """A play's inputs, the last one held for the frame that nes-py is later than the recording's emulator."""
    inputs = bytes.fromhex(play["inputs"])
    return inputs + inputs[-1:]


def package_class() -> Any:
    """gym-super-mario-bros' own environment class; its legacy gym talks on stderr when imported.

    Raises:
        ImportError: the package, or what it needs, does not import here.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module("gym_super_mario_bros.smb_env").SuperMarioBrosEnv


def play_package(inputs: bytes, first: int) -> list[Played]:
    """Inputs from power-on on the package's environment: `first` frames for its start screen, the others as steps."""
    base: Any = package_class()

    class FromPowerOn(base):  # type: ignore[misc]
        def _skip_start_screen(self) -> None:
            for buttons in inputs[:first]:
                self._frame_advance(buttons)

    env = FromPowerOn(target=(1, 1))
    try:
        env.reset()
        played: list[Played] = []
        for buttons in inputs[first:]:
            _, reward, *ends, info = env.step(buttons)
            x, lives, time, coins, score = (int(info[name]) for name in ("x_pos", "life", "time", "coins", "score"))
            seen = Fields(x, lives, time, coins, score, bool(info["flag_get"]))
            played.append(Played(seen, float(reward), any(ends)))
            if any(ends):
                break
        return played
    finally:
        env.close()


def play_ours(machine: Emulator, inputs: bytes, first: int, preset: str) -> list[Played]:
    """The same inputs on one of our machines, just switched on."""
    for buttons in inputs[:first]:
        machine.step(buttons)
    terms = configure.from_tree({"env": {"reward": {"preset": preset}}}, "conformance").env.reward
    episode = mario.begin(mario.read(machine.ram))
    played = []
    for buttons in inputs[first:]:
        machine.step(buttons)
        now = mario.read(machine.ram)
        reward = mario.reward(episode, [now], terms)
        episode = mario.advance(episode, [now])
        played.append(Played(fields(episode.start, now), reward, episode.outcome is not Outcome.PLAYING))
        if played[-1].ended:
            break
    return played


def package_preset() -> str:
    """The preset that names the installed version's reward."""
    older = importlib.metadata.version("gym-super-mario-bros").startswith("7.")
    return f"gym-super-mario-bros-{'7.4' if older else '9.1'}"


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first index at which the common part of two sequences differs; its length where none does."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


class Seen(NamedTuple):
    """One frame of a scripted play."""

    fields: Fields
    outcome: Outcome
    ram: bytes


class Comparison(NamedTuple):
    """A stage played by one script on both emulators."""

    stage: str
    frames: int  # played on both
    end: str  # how it ended on FCEUmm
    leads: dict[str, int]  # frames by which FCEUmm's reading is ahead, per field
    differs: dict[str, int]  # the frame of the first difference, of the fields that have one
    counters: tuple[int, int]  # frames counted by the game up to the first difference, or the end: FCEUmm, nes-py


def script(stage: str, frames: int) -> list[int]:
    """Buttons of every frame: mostly to the right with jumps, held for 4 to 40 frames; the same for every emulator."""
    rng = np.random.default_rng([ord(letter) for letter in stage])
    actions = mario.action_buttons("COMPLEX_MOVEMENT")
    weights = np.array([1, 4, 8, 8, 16, 2, 1, 1, 1, 1, 1, 1], float)
    held: list[int] = []
    while len(held) < frames:
        held += [actions[rng.choice(len(actions), p=weights / weights.sum())]] * int(rng.integers(4, 41))
    return held[:frames]


def play_script(machines: Machines, stage: str, frames: int) -> list[Seen]:
    """Play a stage's script until the episode ends."""
    machines.start(0, stage)
    machine = machines.of(0)
    start = mario.read(machine.ram)
    seen = []
    for buttons in script(stage, frames):
        machine.step(buttons)
        now = mario.read(machine.ram)
        seen.append(Seen(fields(start, now), mario.outcome(start, now), machine.ram.tobytes()))
        if seen[-1].outcome is not Outcome.PLAYING:
            break
    return seen


def compare(stage: str, fceumm: list[Seen], nes_py: list[Seen]) -> Comparison:
    """Align each field by the lead (0 or 1) that keeps it equal longest, and say where it parts."""
    frames = min(len(fceumm), len(nes_py) - 1)
    leads, differs = {}, {}
    for name in (*Fields._fields, "outcome"):
        one, other = (
            [each.outcome if name == "outcome" else getattr(each.fields, name) for each in seen]
            for seen in (fceumm[:frames], nes_py[: frames + 1])
        )
        at, lead = max((first_difference(one, other[lead:]), lead) for lead in (0, 1))
        leads[name] = lead
        if at < frames:
            differs[name] = at
    until = min(differs.values(), default=frames - 1) + 1
    counters = _counted(fceumm[:until]), _counted(nes_py[:until])
    return Comparison(stage, frames, fceumm[-1].outcome.name.lower(), leads, differs, counters)


def _counted(seen: list[Seen]) -> int:
    counters = np.array([each.ram[FRAME_COUNTER] for each in seen])
    return int(np.sum(np.diff(counters) % 256))


def package_rows() -> list[str]:
    """One row per recorded play: the package's environment against our rules on nes-py."""
    first = RECORDED["first_playable_frame"]
    rows = []
    for number, play in enumerate(RECORDED["plays"], 1):
        inputs = held_on(play)
        machine = NESPy()
        theirs, ours = play_package(inputs, first), play_ours(machine, inputs, first, package_preset())
        machine.close()
        differs = first_difference(theirs, ours)
        same = "equal" if theirs == ours else f"differ from frame {differs}"
        last = theirs[-1].fields
        rows.append(f"| {number} | {len(theirs)} | {len(ours)} | {same} | x {last.x}, flag {last.flag} |")
    return rows


def report(rows: list[str], comparisons: list[Comparison], frames: int) -> str:
    """The document."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    alike = sum(not c.differs for c in comparisons)
    played = sum(c.frames for c in comparisons)
    equal = sum(min(c.differs.values(), default=c.frames) for c in comparisons)
    table = [
        f"| {c.stage} | {c.frames} | {c.end} | {', '.join(name for name, lead in c.leads.items() if not lead)} "
        f"| {', '.join(f'{name} {at}' for name, at in c.differs.items())} | {c.counters[0]}, {c.counters[1]} |"
        for c in comparisons
    ]
    return "\n".join(
        [
            "# Conformance",
            "",
            "Written by `python -m benchmarks.conformance` from what it measured with Python "
            f"{platform.python_version()}, {versions}.",
            "",
            "## Our rules over nes-py against gym-super-mario-bros' own environment",
            "",
            "Recorded inputs, one byte per frame from power-on, on the package's `SuperMarioBrosEnv` (its start screen",
            "skipped by the recording's own presses) and on ours. Compared at every frame: x position, lives, time,",
            f"coins, score, flag, the end of the episode, and the reward (`{package_preset()}`).",
            "",
            "| play | frames, package | frames, ours | every frame | end |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## FCEUmm against nes-py",
            "",
            f"Each stage is played by its own script (mostly to the right, jumping; at most {frames} frames) from its",
            "start until the episode ends. FCEUmm's readings lead by one frame, except for the fields named under",
            "`no lead`; then comes the first frame at which a field differs, and the frames that the game itself has",
            "counted (RAM 0x09) up to there, or to the end, on FCEUmm and on nes-py.",
            "",
            f"{alike} of {len(comparisons)} stages are equal to the end of the episode; {equal} of {played} frames are",
            "equal up to the first difference of their stage.",
            "",
            "| stage | frames | end on FCEUmm | no lead | differs | frames counted |",
            "|---|---|---|---|---|---|",
            *table,
            "",
            "Why a lead: it fits that the emulators end a frame at different points of the game's own per-frame",
            "routine. At the border of nes-py the clock has moved on and the player has not: x comes a frame later,",
            "time does not. Why differences: looked at in 1-2 and 2-2, x is a pixel apart from the frame named on,",
            "while the game counted as many frames on both. So no frame was skipped; it would follow if a change of",
            "buttons were read a frame apart. That this is the cause is not established.",
            "",
            "Screens are not compared: the emulators draw the same area in palettes of their own. An agent trained on",
            "the one sees other shades of gray on the other.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1500, help="frames per stage, at most (default 1500)")
    parser.add_argument(
        "stages", nargs="*", default=config.stages(config.MARIO), metavar="STAGE", help="default: all 32"
    )
    options = parser.parse_args()
    rows = package_rows()
    shared, own = SharedMachine(FCEUmm()), MachinePerLane()
    comparisons = [
        compare(stage, play_script(shared, stage, options.frames), play_script(own, stage, options.frames))
        for stage in options.stages
    ]
    shared.close()
    own.close()
    document = ROOT / "docs/CONFORMANCE.md"
    document.write_text(report(rows, comparisons, options.frames))
    print(f"wrote {document}")


if __name__ == "__main__":
    main()
