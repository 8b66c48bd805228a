"""Exploration of actors: epsilons spread over lanes, and random actions that repeat (NumPy)."""

from __future__ import annotations

import numpy as np

from apex_zmq.types import Float64s, Int64s


def ladder(epsilon: float, alpha: float, index: int, count: int) -> float:
    """Return the epsilon of lane `index` of `count`: eps^(1 + alpha i/(N-1)) (Horgan et al. 2018, sec. 4).

    A single lane takes the base epsilon.
    """
    rung = index / (count - 1) if count > 1 else 0.0
    return float(epsilon ** (1 + alpha * rung))


def elastic_epsilon(epsilon: float, alpha: float, lane: int, num_lanes: int, rng: np.random.Generator) -> float:
    """Draw an epsilon for an episode of `lane` of an actor's L = `num_lanes`: eps^(1 + alpha u), u = (lane + U)/L.

    U is uniform in [0, 1). Over episodes this spreads epsilons as `ladder` does, stratified over lanes, for any
    number of actors.
    """
    return float(epsilon ** (1 + alpha * (lane + rng.random()) / num_lanes))


class Explorer:
    """Epsilon-greedy choice for L lanes, with repeats: epsilon-z-greedy (Dabney et al. 2021, arXiv 2006.01782).

    A random action lasts z decisions, P(z) proportional to z^-zeta, limited to `repeat_max`;
    if `repeat_zeta` is None, it lasts one.
    """

    def __init__(
        self,
        num_lanes: int,
        num_actions: int,
        repeat_zeta: float | None,
        repeat_max: int,
        rng: np.random.Generator,
    ) -> None:
        self._num_actions = num_actions
        self._zeta = repeat_zeta
        self._repeat_max = repeat_max
        self._rng = rng
        self._action = np.zeros(num_lanes, np.int64)
        self._remaining = np.zeros(num_lanes, np.int64)  # decisions left of the repeated action

    def act(self, greedy: Int64s, epsilon: Float64s) -> Int64s:
        """Choose the lanes' actions, int64 [L].

        Args:
            greedy: int64 [L], argmax_a Q of each lane.
            epsilon: float64 [L], probability that a lane without a running repeat starts a random action.
        """
        lanes = len(self._action)
        starts = (self._remaining == 0) & (self._rng.random(lanes) < epsilon)
        self._action = np.where(starts, self._rng.integers(self._num_actions, size=lanes), self._action)
        self._remaining = np.where(starts, self._durations(lanes), self._remaining)
        random = self._remaining > 0
        self._remaining -= random
        return np.where(random, self._action, greedy)

    def reset(self, lane: int) -> None:
        """End a lane's running repeat; called at the start of an episode."""
        self._remaining[lane] = 0

    def _durations(self, lanes: int) -> Int64s:
        if self._zeta is None:
            return np.ones(lanes, np.int64)
        return np.minimum(self._rng.zipf(self._zeta, lanes), self._repeat_max)
