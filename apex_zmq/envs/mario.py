"""The rules of Super Mario Bros, read from RAM: one place for every emulator.

Addresses are those of the game's well-known RAM map. What ends an episode, and
what a decision earns, is defined here and nowhere else; a change to either
changes RULES_VERSION.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from apex_zmq.config import settings
from apex_zmq.envs import games
from apex_zmq.envs.emulators import Emulator, StatefulEmulator
from apex_zmq.envs.interface import EnvError
from apex_zmq.types import UInt8s, UInt16s

RULES_VERSION = 1
FRAMES_PER_S = 60.1  # of an NTSC console

# Worlds in which 1-2, say, is behind the walk into a pipe, which is an area of its own.
_WORLDS_WITH_A_WALK = {"SuperMarioBros": (1, 2, 4, 7), "SuperMarioBros2": (1, 3)}

# Values of player_state (0x0e).
_SLIDING_DOWN_FLAGPOLE = 0x04
_DEAD = 0x06
_IN_CONTROL = 0x08
_DYING = 0x0B

# Values of the game's mode (0x770) and of the task within it (0x772).
_PLAYING_MODE = 1
_END_OF_WORLD_MODE = 2
_PLAYING_TASK = 3


class Reading(NamedTuple):
    """What RAM says after one frame."""

    x: int  # pixels from the left end of the area
    y_page: int  # 1: on the screen; 0: above it; more: below it
    in_clouds: bool  # a bonus area that one leaves by falling out of it
    player_state: int
    status: int  # 0 small, 1 tall, 2 with fire
    lives: int  # left after this one; 255 when the game is over
    world: int  # 1 to 8
    stage: int  # 1 to 4
    area: int  # counts the parts of a world, from 1
    mode: int  # 0 title and demo, 1 playing, 2 end of a world, 3 game over
    time: int  # units left on the clock
    score: int
    coins: int


def read(ram: UInt8s) -> Reading:
    """Read a [2048] RAM."""
    byte = ram.tobytes()
    return Reading(
        x=byte[0x6D] * 256 + byte[0x86],
        y_page=byte[0xB5],
        in_clouds=byte[0x743] != 0,
        player_state=byte[0x0E],
        status=byte[0x756],
        lives=byte[0x75A],
        world=byte[0x75F] + 1,
        stage=byte[0x75C] + 1,
        area=byte[0x760] + 1,
        mode=byte[0x770],
        time=_number(byte[0x7F8:0x7FB]),
        score=_number(byte[0x7DE:0x7E4]),
        coins=_number(byte[0x7ED:0x7EF]),
    )


def _number(digits: bytes) -> int:
    value = 0
    for digit in digits:
        value = value * 10 + digit
    return value


def obeys(ram: UInt8s) -> bool:
    """Whether buttons matter: no screen between two stages, no way through a pipe, no fall, no change of size."""
    in_play = ram[0x770] == _PLAYING_MODE and ram[0x772] == _PLAYING_TASK and ram[0x0E] == _IN_CONTROL
    return bool(in_play and (ram[0xB5] <= 1 or ram[0x743] != 0))


def held(ram: UInt8s) -> tuple[bool, bool]:
    """Whether the game holds A and B for pressed: it acts on them only once they have been released."""
    return bool(ram[0x0D] & 0x80), bool(ram[0x0D] & 0x40)


class Outcome(Enum):
    """Where an episode stands."""

    PLAYING = 0
    DEAD = 1
    CLEARED = 2


def outcome(start: Reading, now: Reading) -> Outcome:
    """Judge one frame of an episode that began at `start`."""
    # On the flagpole the float state (0x1d) is 3, which it is on a vine too, and now and
    # then 2: the player's routine tells the flagpole from all else.
    if (
        now.player_state == _SLIDING_DOWN_FLAGPOLE
        or now.mode == _END_OF_WORLD_MODE
        or (now.world, now.stage) != (start.world, start.stage)
    ):
        return Outcome.CLEARED
    if (
        now.player_state in (_DYING, _DEAD)
        or (now.y_page > 1 and not now.in_clouds)
        or now.lives < start.lives
        or now.lives == 255
    ):
        return Outcome.DEAD
    return Outcome.PLAYING


class Episode(NamedTuple):
    """The account of an episode after some decisions.

    Where it goes on after a life or a stage, all but the last two begins anew.
    """

    start: Reading
    last: Reading
    max_x: int
    stalled: int = 0  # decisions since max_x last grew
    outcome: Outcome = Outcome.PLAYING
    decisions: int = 0
    stages_cleared: int = 0

    @property
    def stage(self) -> str:
        """The stage being played, such as 1-1."""
        return f"{self.start.world}-{self.start.stage}"


def begin(start: Reading) -> Episode:
    """The account of an episode before its first decision."""
    return Episode(start, start, start.x)


def go_on(episode: Episode, start: Reading) -> Episode:
    """The account of an episode that goes on with another life or stage, before its first decision there."""
    return begin(start)._replace(decisions=episode.decisions, stages_cleared=episode.stages_cleared)


def advance(episode: Episode, readings: Sequence[Reading]) -> Episode:
    """Account for one decision, given the readings of its frames (one at least)."""
    max_x = max(episode.max_x, *(reading.x for reading in readings))
    end = outcome(episode.start, readings[-1])
    return Episode(
        start=episode.start,
        last=readings[-1],
        max_x=max_x,
        stalled=0 if max_x > episode.max_x else episode.stalled + 1,
        outcome=end,
        decisions=episode.decisions + 1,
        stages_cleared=episode.stages_cleared + (end is Outcome.CLEARED),
    )


def reward(before: Episode, readings: Sequence[Reading], terms: settings.Reward) -> float:
    """What a decision earned, given the account before it and the readings of its frames."""
    if terms.preset != "terms":
        return _package_reward(before, readings, terms.preset == "gym-super-mario-bros-9.1")
    after = advance(before, readings)
    earned = min(after.max_x - before.max_x, terms.progress_clip) * terms.progress + terms.time
    if after.outcome is Outcome.DEAD:
        earned += terms.death
    elif after.outcome is Outcome.CLEARED:
        earned += terms.clear
    points, coins, power_ups = _gains(before.last, after.last)
    return earned + points * terms.score + coins * terms.coins + power_ups * terms.power_up


def _gains(last: Reading, now: Reading) -> tuple[int, int, int]:
    """Points, coins and power-ups gained; the count of coins goes from 99 to 0."""
    return max(now.score - last.score, 0), (now.coins - last.coins) % 100, min(now.status, 2) - min(last.status, 2)


def _package_reward(before: Episode, readings: Sequence[Reading], newer: bool) -> float:
    """The reward of gym-super-mario-bros' step(), 7.4's or the newer 9.1's (smb_env.py, _get_reward).

    The package's step is one frame: the frames are clipped to +-15 each and summed up.
    """
    total, last, best_x = 0.0, before.last, before.max_x
    for now in readings:
        end = outcome(before.start, now)
        moved = now.x - (best_x if newer else last.x)
        if newer:
            moved = max(moved, 0)
        earned = float(moved if abs(moved) <= 5 else 0)  # a larger step is a change of area
        earned += min(now.time - last.time, 0)
        if end is Outcome.DEAD:
            earned -= 25
        if newer:
            points, coins, power_ups = _gains(last, now)
            earned += points / 100 + 5 * coins + 5 * power_ups + (50 if end is Outcome.CLEARED else 0)
        total += min(max(earned, -15.0), 15.0)
        last, best_x = now, max(best_x, now.x)
    return total


def ended(episode: Episode, env: settings.Env) -> bool:
    """Whether an episode is over: its last life is lost, its stage (of the whole game: the last one) cleared."""
    if episode.outcome is Outcome.DEAD:
        # Judged at the touch, when the game has not counted the life yet.
        return env.lives == 1 or episode.last.lives in (0, 255)
    if episode.outcome is Outcome.CLEARED:
        last_stage = episode.start.world == games.WORLDS[env.id] and episode.start.stage == 4
        return env.stages != "all" or last_stage
    return False


def truncated(episode: Episode, env: settings.Env) -> bool:
    """Whether an episode still being played is cut off: too long, or without progress for too long."""
    return episode.outcome is Outcome.PLAYING and (
        (env.stall_limit is not None and episode.stalled >= env.stall_limit)
        or (env.max_episode_steps is not None and episode.decisions >= env.max_episode_steps)
    )


class Start(NamedTuple):
    """The first playable frame of a stage."""

    state: bytes
    screen: UInt16s  # [224, 240] RGB565, memory of its own


# Frames. A flag, the way to the castle, the points for the clock, and the way into the pipe of 1-2 take 1,100.
_IGNORING_FRAMES_MAX = 6000


def wait(emulator: Emulator) -> Iterator[Reading]:
    """Hold no button until the game obeys; the readings of the frames, none where it does already.

    Raises:
        EnvError: it takes too long.
    """
    for _ in range(_IGNORING_FRAMES_MAX):
        if obeys(emulator.ram):
            return
        emulator.step(0)
        yield read(emulator.ram)
    raise EnvError(f"{emulator.game} ignored the player for {_IGNORING_FRAMES_MAX} frames; reinstall the emulator")


# Frames, counted from power-on. In 1-1 the player is in control after 207.
_TITLE_FRAMES = 60
_START_FRAMES_MAX = 120
_PLAYABLE_FRAMES_MAX = 600

_starts: dict[tuple[type[StatefulEmulator], str, str], Start] = {}


def start_state(emulator: StatefulEmulator, stage: str) -> Start:
    """The first playable frame of a stage; worked out once per process, kind of emulator and game.

    Leaves the emulator anywhere.

    Raises:
        EnvError: no such stage, or the game does not get there.
    """
    key = type(emulator), emulator.game, stage
    if key not in _starts:
        emulator.power_on()
        play_to_start(emulator, stage)
        _starts[key] = Start(emulator.save_state(), np.array(emulator.screen))
    return _starts[key]


def play_to_start(emulator: Emulator, stage: str) -> None:
    """Play from power-on to the first frame of a stage that obeys the player.

    The stage is written into RAM on the title screen, before START makes the
    game load it, as gym-super-mario-bros does. Underground and water stages
    begin behind the walk into the pipe: it is an area of its own.

    Raises:
        EnvError: no such stage, or the game does not get there.
    """
    known = games.stages(emulator.game)
    if stage not in known:
        raise EnvError(f"no stage {stage!r} in {emulator.game}; stages run from {known[0]} to {known[-1]}")
    world, number = int(stage[0]), int(stage[2])
    area = number + 1 if world in _WORLDS_WITH_A_WALK[emulator.game] and number >= 2 else number
    ram = emulator.ram
    for _ in range(_TITLE_FRAMES):
        emulator.step(0)
    for frame in range(_START_FRAMES_MAX):
        ram[0x75F], ram[0x75C], ram[0x760] = world - 1, number - 1, area - 1
        # The game acts on a press, not on a button held.
        emulator.step(games.START if frame % 2 == 0 else 0)
        if ram[0x770] == _PLAYING_MODE:
            break
    for _ in range(_PLAYABLE_FRAMES_MAX):
        emulator.step(0)
        if obeys(ram):
            break
    now = read(ram)
    if (now.world, now.stage, now.mode, now.player_state) != (world, number, _PLAYING_MODE, _IN_CONTROL):
        raise EnvError(f"stage {stage} did not start within {_PLAYABLE_FRAMES_MAX} frames; reinstall the emulator")
