"""Measure decisions per second of an actor without its network; peer: gym-super-mario-bros with the usual wrappers.

The peer is the package's own environment on nes-py under JoypadSpace, a frame skip of 4, grayscale, resize to 84x84
and a stack of 4, one environment, random actions. Ours is the actor of `actor_overhead`. Each runs on one core.
"""

from __future__ import annotations

import os

from benchmarks import synthetic
from benchmarks.actor_overhead import RANDOM, SECONDS, actor_decisions_per_s
from benchmarks.rows import Row, main, peer, versus

ROUNDS = 3


def measure() -> list[Row]:
    ours: list[float] = []
    theirs: list[float] = []
    all_cores = os.sched_getaffinity(0)
    for _ in range(ROUNDS):
        with synthetic.replay(RANDOM) as running:
            os.sched_setaffinity(0, {min(all_cores)})
            ours.append(actor_decisions_per_s(running.config))
            measured = peer("gym_actor", SECONDS)
            os.sched_setaffinity(0, all_cores)
        if measured is not None:
            theirs.append(measured["decisions_per_s"])
    what = "decisions/s of an actor without its network, one core; peer: gym-super-mario-bros on nes-py, wrapped"
    return [versus("actor_vs_gym", what, ours, theirs, 3.5, "decisions/s")]


if __name__ == "__main__":
    main(measure)
