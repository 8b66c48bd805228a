"""The Super Mario Bros. games as data: worlds, stages, buttons, action sets, and the check of settings against them.

Imports neither an emulator nor NumPy, so that every program can check its settings at once.
"""

from __future__ import annotations

from apex_zmq.config.check import SettingError
from apex_zmq.config.settings import Env

MARIO = "SuperMarioBros"
WORLDS = {MARIO: 8, "SuperMarioBros2": 4}  # worlds of each game's ROM, by `env.id`; four stages each

RIGHT, LEFT, DOWN, UP, START, SELECT, B, A = 128, 64, 32, 16, 8, 4, 2, 1  # bits of a NES controller
BUTTONS = {
    "NOOP": 0,
    "right": RIGHT,
    "left": LEFT,
    "down": DOWN,
    "up": UP,
    "A": A,
    "B": B,
}  # as `env.actions` names them
_RIGHT_ONLY = (("NOOP",), ("right",), ("right", "A"), ("right", "B"), ("right", "A", "B"))
_SIMPLE_MOVEMENT = (*_RIGHT_ONLY, ("A",), ("left",))
_COMPLEX_MOVEMENT = (*_SIMPLE_MOVEMENT, ("left", "A"), ("left", "B"), ("left", "A", "B"), ("down",), ("up",))
ACTION_SETS = {
    "RIGHT_ONLY": _RIGHT_ONLY,
    "SIMPLE_MOVEMENT": _SIMPLE_MOVEMENT,
    "COMPLEX_MOVEMENT": _COMPLEX_MOVEMENT,
}


def stages(game: str) -> tuple[str, ...]:
    """The stages of a game of `WORLDS`, in the order of play."""
    return tuple(f"{world}-{stage}" for world in range(1, WORLDS[game] + 1) for stage in range(1, 5))


def action_buttons(actions: str | tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
    """The controller byte of each action of a set, given by name or as lists of buttons.

    Raises:
        KeyError: unknown name; `check_env` refuses it first.
    """
    listed = ACTION_SETS[actions] if isinstance(actions, str) else actions
    return tuple(sum(BUTTONS[button] for button in set(action)) for action in listed)


def action_names(actions: str | tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The buttons of each action of a set, such as "right+A"."""
    listed = ACTION_SETS[actions] if isinstance(actions, str) else actions
    return tuple("+".join(action) for action in listed)


def check_env(env: Env) -> None:
    """Refuse settings that a Mario game cannot be played with; other environments pass.

    Raises:
        SettingError: names the setting and the remedy.
    """
    if env.id not in WORLDS:
        return
    if env.max_pool and env.frame_skip == 1:
        raise SettingError(
            "env.max_pool takes two frames of a decision; raise env.frame_skip to 2 or more",
            ("env.max_pool", "env.frame_skip"),
        )
    known = stages(env.id)
    for stage in () if env.stages == "all" else env.stages:
        if stage not in known:
            raise SettingError(
                f"env.stages: no stage {stage!r} in {env.id}; stages run from {known[0]} to {known[-1]}",
                ("env.stages",),
            )
    if isinstance(env.actions, str):
        return
    if not env.actions:
        raise SettingError("env.actions: list at least one action, such as [right]", ("env.actions",))
    for action in env.actions:
        unknown = set(action) - BUTTONS.keys()
        if unknown or not action:
            raise SettingError(
                f"env.actions: {list(action)} names {', '.join(sorted(unknown)) or 'no button'}; "
                f"buttons are {' '.join(sorted(BUTTONS))}",
                ("env.actions",),
            )
