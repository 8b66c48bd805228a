"""The rules of Super Mario Bros: ends of episodes and rewards, read from RAM, for every emulator.

Addresses are those of the game's RAM map (datacrystal.org, Super Mario Bros./RAM map). A change of the rules changes
RULES_VERSION, which is part of the experience signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from apex_zmq.config import settings
from apex_zmq.envs import games
from apex_zmq.envs.emulators import Emulator, StatefulEmulator
from apex_zmq.envs.interface import EnvError
from apex_zmq.types import UInt8s, UInt16s

RULES_VERSION = 2
FRAMES_PER_S = 60.1  # of an NTSC console

# Worlds whose second stage begins after a walk into a pipe, which is an area of its own.
_WORLDS_WITH_A_WALK = {"SuperMarioBros": (1, 2, 4, 7), "SuperMarioBros2": (1, 3)}

# Values of player_state (0x0e).
_AT_THE_FLAG = frozenset({0x04, 0x05})  # down the flagpole, then into the castle
_DEAD = 0x06
_IN_CONTROL = 0x08
_DYING = 0x0B
# Entering an area, on the way through a pipe, or up a vine by itself: x may be of either area, or of none.
_BETWEEN_AREAS = frozenset({0x00, 0x01, 0x02, 0x03, 0x07})

AREA_PX = 128  # pixels that an area counts for as progress
CLEAR_PX = 1024  # likewise, of a cleared stage
LOOP_BACK_PX = 768  # a maze takes four pages of 256 pixels off x at once

# Values of the game's mode (0x770) and of the task within it (0x772).
_PLAYING_MODE = 1
_END_OF_WORLD_MODE = 2
_PLAYING_TASK = 3


class Reading(NamedTuple):
    """The values of RAM that the rules use, after one frame."""

    x: int  # pixels from the left end of the area; a maze may take it below 0
    y_page: int  # 1: on the screen; 0: above it; more: below it
    in_clouds: bool  # a bonus area that one leaves by falling out of it
    player_state: int
    status: int  # 0 small, 1 tall, 2 with fire
    lives: int  # left after this one; 255 when the game is over
    world: int  # 1 to 8
    stage: int  # 1 to 4
    area: int  # address of the area's map, which tells the areas of a stage apart
    mode: int  # 0 title and demo, 1 playing, 2 end of a world, 3 game over
    time: int  # units left on the clock
    score: int
    coins: int
    standing: bool  # on ground, or swimming


def read(ram: UInt8s) -> Reading:
    """Read a [2048] RAM."""
    byte = ram.tobytes()
    return Reading(
        x=(byte[0x6D] - (byte[0x6D] & 0x80) * 2) * 256 + byte[0x86],
        y_page=byte[0xB5],
        in_clouds=byte[0x743] != 0,
        player_state=byte[0x0E],
        status=byte[0x756],
        lives=byte[0x75A],
        world=byte[0x75F] + 1,
        stage=byte[0x75C] + 1,
        area=byte[0xE8] * 256 + byte[0xE7],
        mode=byte[0x770],
        time=_number(byte[0x7F8:0x7FB]),
        score=_number(byte[0x7DE:0x7E4]),
        coins=_number(byte[0x7ED:0x7EF]),
        standing=byte[0x1D] == 0 or byte[0x704] != 0,
    )


def _number(digits: bytes) -> int:
    value = 0
    for digit in digits:
        value = value * 10 + digit
    return value


def obeys(ram: UInt8s) -> bool:
    """Whether the game reacts to buttons: not between stages, in a pipe, in a pit, or during a change of size."""
    in_play = ram[0x770] == _PLAYING_MODE and ram[0x772] == _PLAYING_TASK and ram[0x0E] == _IN_CONTROL
    return bool(in_play and (ram[0xB5] <= 1 or ram[0x743] != 0))


def cell(ram: UInt8s) -> tuple[int, ...]:
    """Where Mario is, roughly: area, columns of 64 and rows of 32 pixels, power-up, and what a maze has counted."""
    now = read(ram)
    y = now.y_page * 256 + int(ram[0xCE])
    return now.area, now.x // 64, y // 32, now.status, int(ram[0x6D9]), int(ram[0x6DA])


def held(ram: UInt8s) -> tuple[bool, bool]:
    """Whether the game counts A and B as held; it reacts to a press only after a release."""
    return bool(ram[0x0D] & 0x80), bool(ram[0x0D] & 0x40)


class Outcome(Enum):
    """State of an episode. WARPED: another stage was reached through a warp zone."""

    PLAYING = 0
    DEAD = 1
    CLEARED = 2
    WARPED = 3


def outcome(start: Reading, now: Reading) -> Outcome:
    """Return the outcome after one frame of an episode that began at `start`."""
    # The float state (0x1D) does not identify the flagpole: it is 3 there and on vines, and sometimes 2.
    if now.player_state in _AT_THE_FLAG or now.mode == _END_OF_WORLD_MODE:
        return Outcome.CLEARED
    if (now.world, now.stage) != (start.world, start.stage):
        return Outcome.WARPED
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

    At the next life or stage of the episode, all fields except `decisions` and `stages_cleared` are reset.
    """

    start: Reading
    last: Reading
    ground: Mapping[int, int]  # by area: the largest x that progress was paid for; that of the entry at first
    max_x: int  # largest x in any area
    stalled: int = 0  # decisions since the last new ground
    new_ground: int = 0  # pixels, in the last decision
    new_areas: int = 0  # entered for the first time, in the last decision
    distance: int = 0  # new ground of the whole episode, an area for half a screen of it
    looped: bool = False  # whether a maze took Mario back in the last decision
    loops: int = 0  # decisions that did
    outcome: Outcome = Outcome.PLAYING
    decisions: int = 0
    stages_cleared: int = 0

    @property
    def stage(self) -> str:
        """The stage being played, such as 1-1."""
        return f"{self.start.world}-{self.start.stage}"


def begin(start: Reading) -> Episode:
    """Return the account of an episode before its first decision."""
    return Episode(start, start, {start.area: start.x}, start.x)


def go_on(episode: Episode, start: Reading) -> Episode:
    """Return the account of an episode at the start of its next life or stage."""
    return begin(start)._replace(decisions=episode.decisions, stages_cleared=episode.stages_cleared)


def advance(episode: Episode, readings: Sequence[Reading], env: settings.Env) -> Episode:
    """Return the account after one decision, given the readings of its frames, at least one.

    New ground is the part of x above the largest x of the area so far. Frames between two areas have no position.
    """
    ground, max_x, last = dict(episode.ground), episode.max_x, episode.last
    new_ground, looped = 0, False
    for now in readings:
        if now.player_state in _BETWEEN_AREAS:
            continue
        max_x = max(max_x, now.x)
        looped |= now.area == last.area and last.x - now.x >= LOOP_BACK_PX
        last = now
        if now.standing or not env.reward.progress_standing:
            new_ground += max(now.x - ground.setdefault(now.area, now.x), 0)
            ground[now.area] = max(ground[now.area], now.x)
    new_areas = len(ground) - len(episode.ground)
    end = outcome(episode.start, readings[-1])
    return Episode(
        start=episode.start,
        last=readings[-1],
        ground=ground,
        max_x=max_x,
        stalled=0 if new_ground or new_areas else episode.stalled + 1,
        new_ground=new_ground,
        new_areas=new_areas,
        distance=episode.distance + new_ground + AREA_PX * new_areas,
        looped=looped,
        loops=episode.loops + looped,
        outcome=end,
        decisions=episode.decisions + 1,
        stages_cleared=episode.stages_cleared + (end is Outcome.CLEARED),
    )


def reward(before: Episode, after: Episode, readings: Sequence[Reading], env: settings.Env) -> float:
    """Return the reward of a decision, given the accounts before and after it and the readings of its frames."""
    terms = env.reward
    if terms.preset != "terms":
        return _package_reward(before, readings, terms.preset == "gym-super-mario-bros-9.1")
    earned = min(after.new_ground, terms.progress_clip) * terms.progress + after.new_areas * terms.area + terms.time
    if after.outcome is Outcome.DEAD or _failed_by_stalling(after, env):
        earned += terms.death
    elif after.outcome is Outcome.CLEARED:
        earned += terms.clear
    if after.looped:
        earned += terms.loop
    points, coins, power_ups = _gains(before.last, after.last)
    return earned + points * terms.score + coins * terms.coins + power_ups * terms.power_up


def _gains(last: Reading, now: Reading) -> tuple[int, int, int]:
    """Return the points, coins and power-ups gained; the coin counter wraps from 99 to 0."""
    return max(now.score - last.score, 0), (now.coins - last.coins) % 100, min(now.status, 2) - min(last.status, 2)


def _package_reward(before: Episode, readings: Sequence[Reading], newer: bool) -> float:
    """Return the reward of gym-super-mario-bros, version 7.4 or the newer 9.1 (smb_env.py, _get_reward).

    The package clips the reward of each frame to +-15; the rewards of the frames are added up.
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
    """Whether an episode has terminated: last life lost, or stage cleared or left (of the whole game: the last one).

    A loop-back or a stall terminates it if the settings say so.
    """
    if episode.outcome is Outcome.DEAD:
        # Judged at the touch, when the game has not counted the life yet.
        return env.lives == 1 or episode.last.lives in (0, 255)
    if episode.outcome is Outcome.CLEARED:
        last_stage = episode.start.world == games.WORLDS[env.id] and episode.start.stage == 4
        return env.stages != "all" or last_stage
    if episode.outcome is Outcome.WARPED:
        return env.stages != "all"
    return (episode.looped and env.loop_ends) or _failed_by_stalling(episode, env)


def _stalled(episode: Episode, env: settings.Env) -> bool:
    return episode.outcome is Outcome.PLAYING and env.stall_limit is not None and episode.stalled >= env.stall_limit


def _failed_by_stalling(episode: Episode, env: settings.Env) -> bool:
    return env.stall_end == "failure" and _stalled(episode, env)


def truncated(episode: Episode, env: settings.Env) -> bool:
    """Whether an episode is truncated: too many decisions, or too many without new ground."""
    if episode.outcome is not Outcome.PLAYING or ended(episode, env):
        return False
    return _stalled(episode, env) or (env.max_episode_steps is not None and episode.decisions >= env.max_episode_steps)


def info(episode: Episode, env: settings.Env) -> dict[str, float]:
    """Return the entries of `Step.info`; see `envs.info`."""
    return {
        "max_x": episode.max_x,
        "cleared": int(episode.outcome is Outcome.CLEARED),
        "stages_cleared": episode.stages_cleared,
        "warped": int(episode.outcome is Outcome.WARPED),
        "loops": episode.loops,
        "stalled": int(_stalled(episode, env)),
    }


class Start(NamedTuple):
    """The first playable frame of a stage."""

    state: bytes
    screen: UInt16s  # [224, 240] RGB565, memory of its own


# Frames. The flag, the walk to the castle, the count of the clock and the walk into the pipe of 1-2 take 1,100.
_IGNORING_FRAMES_MAX = 6000


def wait(emulator: Emulator) -> Iterator[Reading]:
    """Hold no button until the game reacts to buttons; yield the reading of each frame.

    Raises:
        EnvError: the game does not react within 6,000 frames.
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
    """Return the first playable frame of a stage; computed once per process, class of emulator and game.

    The state of the emulator is arbitrary afterwards.

    Raises:
        EnvError: the stage does not exist, or the game does not reach it.
    """
    key = type(emulator), emulator.game, stage
    if key not in _starts:
        emulator.power_on()
        play_to_start(emulator, stage)
        _starts[key] = Start(emulator.save_state(), np.array(emulator.screen))
    return _starts[key]


def play_to_start(emulator: Emulator, stage: str) -> None:
    """Play from power-on to the first playable frame of a stage.

    The stage is written into RAM on the title screen, before START makes the game load it, as gym-super-mario-bros
    does. Underground and water stages begin after the walk into the pipe, which is an area of its own.

    Raises:
        EnvError: the stage does not exist, or the game does not reach it.
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
