"""Our sum tree and cpprb's prioritized buffer in turn, each with one byte a row: no arguments."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import cpprb
import numpy as np

from apex_zmq.agent.importance import Draw, ImportanceWeights
from apex_zmq.replay.sum_tree import SumTree

LEAVES = 1 << 21
BATCH = 512
ALPHA, BETA, EPSILON = 0.6, 0.4, 0.01
ROUNDS, TURNS = 15, 200


def ours(td_error: Any, new: Any) -> Callable[[], None]:
    """Sample, weigh and update as the replay and the learner do."""
    tree, weights = SumTree(LEAVES), ImportanceWeights()
    tree.set_range(0, LEAVES, (td_error + EPSILON) ** ALPHA)
    rng = np.random.default_rng(0)

    def turn() -> None:
        slots = tree.stratified(BATCH, rng)
        priorities = tree.get(slots)
        weights.weigh([Draw(0, 0, tree.total, LEAVES, priorities.min())], 0, priorities, BETA, 0.0)
        tree.set(slots, (new + EPSILON) ** ALPHA)

    return turn


def theirs(td_error: Any, new: Any) -> Callable[[], None]:
    """The same through cpprb's own methods, which raise to alpha themselves."""
    buffer = cpprb.PrioritizedReplayBuffer(LEAVES, {"x": {"dtype": np.uint8}}, alpha=ALPHA, eps=EPSILON)
    buffer.add(x=np.zeros(LEAVES, np.uint8), priorities=td_error)

    def turn() -> None:
        sample = buffer.sample(BATCH, beta=BETA)
        buffer.update_priorities(sample["indexes"], new)

    return turn


def main() -> None:
    rng = np.random.default_rng(1)
    td_error, new = rng.random(LEAVES), rng.random(BATCH)
    turns = {"ours_ms": ours(td_error, new), "cpprb_ms": theirs(td_error, new)}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()
    for _ in range(ROUNDS):
        for name, turn in turns.items():
            begin = time.perf_counter()
            for _ in range(TURNS):
                turn()
            times[name].append(1000 * (time.perf_counter() - begin) / TURNS)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
