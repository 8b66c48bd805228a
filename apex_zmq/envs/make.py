"""Create lanes and specifications from settings."""

from __future__ import annotations

from apex_zmq.config import settings
from apex_zmq.envs import atari, games
from apex_zmq.envs.interface import EnvError, EnvSpec, Frame, Lanes, Step
from apex_zmq.envs.lanes import (
    AtariLanes,
    GymLanes,
    MarioLanes,
    RestartableMarioLanes,
    StickyLanes,
    gym_spec,
    mario_spec,
)
from apex_zmq.envs.machines import SharedMachine, make_machines

__all__ = ["EnvError", "EnvSpec", "Frame", "Lanes", "Step", "env_spec", "make_lanes"]


def env_spec(env: settings.Env) -> EnvSpec:
    """Return the specification of the environment; for Mario no emulator is needed.

    Raises:
        ConfigError: as `games.check_env`.
        EnvError: a Gymnasium environment cannot be created or is not supported.
    """
    games.check_env(env)
    return mario_spec(env) if env.id in games.WORLDS else gym_spec(env)


def make_lanes(env: settings.Env, num_lanes: int, seed: int, *, render: bool = False) -> Lanes:
    """Create lanes; each must be reset before it is stepped.

    render: whether `Lanes.render` will be called.

    Raises:
        ConfigError: as `games.check_env`.
        EnvError: the emulator, game or Gymnasium environment is missing or unusable.
    """
    games.check_env(env)
    lanes: Lanes
    if env.id in games.WORLDS:
        machines = make_machines(env.emulator, env.id)
        if isinstance(machines, SharedMachine):
            lanes = RestartableMarioLanes(env, num_lanes, seed, machines)
        else:
            lanes = MarioLanes(env, num_lanes, seed, machines)
    else:
        make = AtariLanes if env.id.startswith(atari.PREFIX) else GymLanes
        lanes = make(env, num_lanes, seed, render)
    return StickyLanes(lanes, env.sticky, seed) if env.sticky else lanes
