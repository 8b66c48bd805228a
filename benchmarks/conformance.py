"""Compare our rules with gym-super-mario-bros, and the two emulators with each other.

python -m benchmarks.conformance [--frames N] plays and writes docs/CONFORMANCE.md.
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

from apex_zmq.config import loading, settings
from apex_zmq.envs import games, mario
from apex_zmq.envs.emulators import Emulator, FCEUmm, NESPy
from apex_zmq.envs.mario import Outcome

ROOT = Path(__file__).parents[1]
RECORDED = json.loads((ROOT / "tests/data/mario-1-1-clears.json").read_text())
PACKAGES = ("gym-super-mario-bros", "nes-py", "stable-retro", "numpy")
FRAME_COUNTER = 0x09
DOCUMENT = """\
# Conformance

Written by `python -m benchmarks.conformance` from measurements with Python {python}, {versions}.

## Our rules on nes-py and gym-super-mario-bros' own environment

Recorded inputs, one byte per frame from power-on, are played on the package's `SuperMarioBrosEnv` (the recorded
inputs skip its start screen) and on our environment. At every frame the comparison covers x position, lives,
time, coins, score, flag, the end of the episode, and the reward (`{preset}`).

| play | frames, package | frames, ours | every frame | end |
|---|---|---|---|---|
{rows}

## The whole game and the Lost Levels

The package's whole game with three lives is compared with `env.stages=all env.lives=3` until the lives are used up.
The inputs are a recorded clear of 1-1 and a script in 1-2; in the Lost Levels a script in 1-1. The comparison covers
the fields of every frame in which the player can act, and with version 7.4 the reward (the reward of 9.1 depends on
earlier lives and stages, ours restarts with each). `equal` is the number of our frames that are equal.

Between two lives the package writes into RAM to shorten the wait; our environment lets the game run. With the wait
shortened in the same way, every frame is equal; the package reports the end of the game one step after the last
touch, at 255 lives. Without shortening, the game's counters differ in later lives, and therefore the positions of
enemies and the frames in which the game tests for touches.

| game | frames, package | ours, shortened | equal | ours, waiting | equal | lives at the end, package |
|---|---|---|---|---|---|---|
{whole}

## FCEUmm and nes-py

Each stage is played by a script of its own (mostly to the right, with jumps) from its start to the end of the
episode, at most {frames} frames. At every frame the comparison covers everything that the rules read (position,
player state, lives, stage, clock, score, coins ...) and their outcome. Two known differences are removed first:

* buttons: FCEUmm receives them one frame late, because nes-py passes them to the game one frame late;
* in the last column also the game's frame counter (RAM 0x09), which is one lower on nes-py at the start of a stage.

With equal buttons {late} of {stages} stages are equal to the end of the episode, with both {aligned} of {stages}. The
emulators therefore differ by a lag of one frame and by the counter's parity, which mainly determines the frames in
which the game tests for touches of enemies.

| stage | frames | end | differs at, buttons equal | differs at, counter equal too |
|---|---|---|---|---|
{table}

Screens are not compared: each emulator has its own palette, so an agent trained on one of them receives different
shades of gray on the other.
"""


class Fields(NamedTuple):
    """The values compared at every frame; flag: the stage is cleared."""

    x: int
    lives: int
    time: int
    coins: int
    score: int
    flag: bool


class Played(NamedTuple):
    """One frame of a recorded play."""

    fields: Fields
    reward: float  # by the package's formula
    ended: bool


def fields(start: mario.Reading, now: mario.Reading) -> Fields:
    """The values of a frame as our rules read them."""
    return Fields(now.x, now.lives, now.time, now.coins, now.score, mario.outcome(start, now) is Outcome.CLEARED)


def held_on(play: Mapping[str, Any]) -> bytes:
    """Inputs of a play; the last is held one frame longer, by which nes-py is later than the recorder."""
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


def play_package(inputs: bytes, first: int, game: str = games.MARIO, stage: str | None = "1-1") -> list[Played]:
    """Inputs from power-on on the package's environment: `first` frames for its start screen, the others as steps.

    stage: None for the package's whole game.
    """
    base: Any = package_class()

    class FromPowerOn(base):  # type: ignore[misc]
        def _skip_start_screen(self) -> None:
            for buttons in inputs[:first]:
                self._frame_advance(buttons)

    target = (int(stage[0]), int(stage[2])) if stage else None
    env = FromPowerOn(lost_levels=game != games.MARIO, target=target)
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


def play_ours(machine: Emulator, inputs: bytes, first: int, env: settings.Env, cut: bool = False) -> list[Played]:
    """Play the same inputs on one of our machines from power-on.

    cut: what lies between two lives is cut short in the package's way, not waited for in ours.
    """
    for buttons in inputs[:first]:
        machine.step(buttons)
    episode = mario.begin(mario.read(machine.ram))
    played = []
    for buttons in inputs[first:]:
        machine.step(buttons)
        now = mario.read(machine.ram)
        before, episode = episode, mario.advance(episode, [now], env)
        reward = mario.reward(before, episode, [now], env)
        played.append(Played(fields(episode.start, now), reward, mario.ended(episode, env)))
        if played[-1].ended:
            break
        if episode.outcome is not Outcome.PLAYING:
            if cut:
                cut_short(machine, episode.outcome)
            for _ in mario.wait(machine):
                pass
            episode = mario.begin(mario.read(machine.ram))
    return played


def cut_short(machine: Emulator, outcome: Outcome) -> None:
    """Write the RAM that gym-super-mario-bros writes after a life or a stage (smb_env.py, _did_step)."""
    ram = machine.ram
    if outcome is Outcome.DEAD:
        ram[0x0E] = 6  # skip the fall after a death
        machine.step(0)
    if 1 < ram[0x6DE] < 255:
        ram[0x6DE] = 1  # skip the way through a pipe
    while ram[0x0E] in (0, 1, 2, 3, 4, 5, 7) or ram[0x770] == 2:
        ram[0x7A0] = 0  # skip the screen with the lives
        machine.step(0)


def package_env(**changed: Any) -> settings.Env:
    """Environment settings with the installed package's reward."""
    return loading.from_tree({"env": changed | {"reward": {"preset": package_preset()}}}, "conformance").env


def package_preset() -> str:
    """Name of the reward preset of the installed version."""
    older = importlib.metadata.version("gym-super-mario-bros").startswith("7.")
    return f"gym-super-mario-bros-{'7.4' if older else '9.1'}"


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first index at which the common part of two sequences differs; its length where none does."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


class Seen(NamedTuple):
    """One frame of a scripted play."""

    reading: mario.Reading
    outcome: Outcome


class Comparison(NamedTuple):
    """A stage played by one script on both emulators, with the buttons a frame later on FCEUmm.

    differs: the first frame at which a reading or the outcome differs; None: no frame does.
    """

    stage: str
    frames: int  # number played on nes-py
    end: str  # outcome of the play on nes-py
    differs: int | None
    differs_with_its_counter: int | None  # the same, with nes-py's frame counter at the start


def script(stage: str, frames: int) -> list[int]:
    """Buttons of every frame: mostly to the right with jumps, held for 4 to 40 frames; the same for every emulator."""
    rng = np.random.default_rng([ord(letter) for letter in stage])
    actions = games.action_buttons("COMPLEX_MOVEMENT")
    weights = np.array([1, 4, 8, 8, 16, 2, 1, 1, 1, 1, 1, 1], float)
    held: list[int] = []
    while len(held) < frames:
        held += [actions[rng.choice(len(actions), p=weights / weights.sum())]] * int(rng.integers(4, 41))
    return held[:frames]


def play_script(machine: Emulator, buttons: Sequence[int]) -> list[Seen]:
    """Play a script on a machine that stands at a stage's start, until the episode ends."""
    start = mario.read(machine.ram)
    seen = []
    for held in buttons:
        machine.step(held)
        now = mario.read(machine.ram)
        seen.append(Seen(now, mario.outcome(start, now)))
        if seen[-1].outcome is not Outcome.PLAYING:
            break
    return seen


def compare(fceumm: FCEUmm, stage: str, frames: int) -> Comparison:
    """Play a stage's script on both emulators; the state of `fceumm` is arbitrary afterwards."""
    buttons = script(stage, frames)
    nes_py = NESPy(fceumm.game)
    mario.play_to_start(nes_py, stage)
    counter = int(nes_py.ram[FRAME_COUNTER])
    theirs = play_script(nes_py, buttons)
    nes_py.close()
    differs = []
    for set_counter in (False, True):
        fceumm.load_state(mario.start_state(fceumm, stage).state)
        if set_counter:
            fceumm.ram[FRAME_COUNTER] = counter
        ours = play_script(fceumm, [0, *buttons[:-1]])
        differs.append(None if ours == theirs else first_difference(ours, theirs))
    return Comparison(stage, len(theirs), theirs[-1].outcome.name.lower(), *differs)


def package_rows() -> list[str]:
    """One row per recorded play: the package's environment against our rules on nes-py."""
    first = RECORDED["first_playable_frame"]
    rows = []
    for number, play in enumerate(RECORDED["plays"], 1):
        inputs = held_on(play)
        machine = NESPy()
        theirs, ours = play_package(inputs, first), play_ours(machine, inputs, first, package_env())
        machine.close()
        differs = first_difference(theirs, ours)
        same = "equal" if theirs == ours else f"differ from frame {differs}"
        last = theirs[-1].fields
        rows.append(f"| {number} | {len(theirs)} | {len(ours)} | {same} | x {last.x}, flag {last.flag} |")
    return rows


def whole_inputs(game: str, frames: int) -> tuple[bytes, int]:
    """Inputs of a whole game from power-on, and how many of them come before the first playable frame.

    In the first game a recorded clear of 1-1 and then 1-2's script, in the Lost Levels 1-1's.
    """
    if game == games.MARIO:
        return held_on(RECORDED["plays"][1]) + bytes(script("1-2", frames)), RECORDED["first_playable_frame"]
    title = bytes(60) + bytes([games.START]) + bytes(156)
    return title + bytes(script("1-1", frames)), len(title)


def comparable(played: Sequence[Played]) -> list[Any]:
    """The values compared in whole games: the fields and, with version 7.4, the reward.

    The reward of 9.1 continues from the largest x and score of earlier lives and stages; ours restarts with each.
    """
    return [each[: 2 if package_preset().endswith("7.4") else 1] for each in played]


def whole_rows(frames: int) -> list[str]:
    """One row per game: the package's whole game with its three lives against ours."""
    rows = []
    for game in games.WORLDS:
        inputs, first = whole_inputs(game, frames)
        theirs = play_package(inputs, first, game, None)
        cells = [game, f"{len(theirs)}"]
        for cut in (True, False):
            machine = NESPy(game)
            ours = play_ours(machine, inputs, first, package_env(id=game, stages="all", lives=3), cut)
            machine.close()
            same = first_difference(comparable(theirs), comparable(ours))
            cells.append(f"{len(ours)} | {'all' if same == len(ours) else same}")
        rows.append(f"| {' | '.join(cells)} | {theirs[-1].fields.lives} |")
    return rows


def report(rows: list[str], whole: list[str], comparisons: Mapping[str, Sequence[Comparison]], frames: int) -> str:
    """Text of docs/CONFORMANCE.md."""
    listed = [(game, c) for game, compared in comparisons.items() for c in compared]
    table = [
        f"| {game} {c.stage} | {c.frames} | {c.end} | {_at(c.differs)} | {_at(c.differs_with_its_counter)} |"
        for game, c in listed
    ]
    late, aligned = (sum(c[field] is None for _, c in listed) for field in (3, 4))
    return DOCUMENT.format(
        python=platform.python_version(),
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
        preset=package_preset(),
        frames=frames,
        rows="\n".join(rows),
        whole="\n".join(whole),
        table="\n".join(table),
        late=late,
        aligned=aligned,
        stages=len(listed),
    )


def _at(frame: int | None) -> str:
    return "" if frame is None else str(frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1500, help="maximum number of frames per stage (default: 1500)")
    options = parser.parse_args()
    rows, whole = package_rows(), whole_rows(4000)
    comparisons = {}
    for game in games.WORLDS:
        machine = FCEUmm(game)
        comparisons[game] = [compare(machine, stage, options.frames) for stage in games.stages(game)]
        machine.close()
    document = ROOT / "docs/CONFORMANCE.md"
    document.write_text(report(rows, whole, comparisons, options.frames))
    print(f"wrote {document}")


if __name__ == "__main__":
    main()
