"""Importance weights of prioritized samples drawn from one or several replay shards (NumPy)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apex_zmq.types import Float32s, Float64s

COUNTED_BATCHES = 1000
PRIOR_BATCHES = 100
MAXIMUM_DECAY = 0.99


def beta_at(beta0: float, annealing: float, updates: int) -> float:
    """Return the importance-sampling exponent after `updates`: linear from beta0, at most 1."""
    return min(1.0, beta0 + annealing * updates)


@dataclass(frozen=True, slots=True)
class Draw:
    """The numbers of a batch that determine the weights of all batches."""

    shard: int  # s, the shard that sampled it
    shard_incarnation: int
    mass: float  # M_s, sum of all stored priorities of the shard when it sampled
    num_transitions: int  # N_s, transitions in the shard when it sampled
    least: float  # smallest p_i of its rows, > 0


@dataclass(frozen=True, slots=True)
class _Shard:
    """A live shard, as of its newest batch."""

    incarnation: int
    num_transitions: int  # N_s
    time: float  # seconds, of the newest batch


class ImportanceWeights:
    """Weights (N P(i))^-beta over an exponential mean of the batch maxima.

    With one shard P(i) = p_i / M, which is plain prioritized replay (Schaul et al. 2016,
    arXiv 1511.05952, sec. 3.4). Over shards P(i) = f_s p_i / M_s, with f_s the shard's share of
    the training data, f_s = (c_s + k N_s/N) / (c + k): c_s is the number of batches from shard s
    among the last c <= 1,000, including the current one. While counts are low, sizes are a prior of
    weight k = 100 (1 - c / 1,000). N is the number of transitions of all live shards: those with a batch in the
    last `shard_timeout_s` seconds. Counts and mean restart when the set of live shards, or the incarnation of one,
    changes.

    Once c = 1,000 the weights are unbiased at beta = 1. Of the other 999 batches C ~ B(999, q_s) came
    from s, whose true share is q_s, and E[1 / f_s] = E[1,000 / (1 + C)] = (1 - (1 - q_s)^1000) / q_s.

    The weights are divided by a mean of maxima, because the maximum of each batch would cancel f_s.

    With several ranks, a step has one batch per rank. Every rank accounts for all of them, so that all ranks have the
    same maximum, and the same counts as a single rank that trains on all rows.
    """

    def __init__(self, shard_timeout_s: float = 30.0) -> None:
        self._timeout_s = shard_timeout_s
        self._live: dict[int, _Shard] = {}
        self._restart()

    def _restart(self) -> None:
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        self._maximum: float | None = None

    def account(self, draws: Sequence[Draw], now: float) -> None:
        """Count the batches of a step; now: seconds of a monotonic clock."""
        for draw in draws:
            self._update_shard(draw, now)
        for draw in draws:
            self._count(draw.shard)

    def unnormalized(self, draw: Draw, priorities: Float64s, beta: float) -> Float64s:
        """Return (N P(i))^-beta, float64 [B], of a counted batch; arguments as for `weigh`."""
        total = sum(live.num_transitions for live in self._live.values())
        counted = len(self._recent)
        prior = PRIOR_BATCHES * (1 - counted / COUNTED_BATCHES)
        share = (self._counts[draw.shard] + prior * self._live[draw.shard].num_transitions / total) / (counted + prior)
        weights: Float64s = (total * share / draw.mass * priorities) ** -beta
        return weights

    def weigh(self, draws: Sequence[Draw], rank: int, priorities: Float64s, beta: float, now: float) -> Float32s:
        """Account for the batches of a step and return the weights of one of them, float32 [B].

        Args:
            draws: all of the step's batches, by rank.
            rank: index of the batch to weigh.
            priorities: p_i of its batch, float64 [B], > 0, as stored when it was sampled.
            beta: exponent, in [0, 1].
            now: seconds of a monotonic clock; the same value on all ranks.
        """
        self.account(draws, now)
        maximum = max(float(self.unnormalized(draw, np.array([draw.least]), beta)[0]) for draw in draws)
        if self._maximum is None:
            self._maximum = maximum
        self._maximum += (1 - MAXIMUM_DECAY) * (maximum - self._maximum)
        return (self.unnormalized(draws[rank], priorities, beta) / self._maximum).astype(np.float32)

    def _update_shard(self, draw: Draw, now: float) -> None:
        """Update the shard of a batch, drop silent shards, and restart if the live incarnations have changed."""
        before = self._incarnations()
        self._live[draw.shard] = _Shard(draw.shard_incarnation, draw.num_transitions, now)
        self._live = {shard: live for shard, live in self._live.items() if now - live.time <= self._timeout_s}
        if self._incarnations() != before:
            self._restart()

    def _incarnations(self) -> dict[int, int]:
        return {shard: live.incarnation for shard, live in self._live.items()}

    def _count(self, shard: int) -> None:
        self._recent.append(shard)
        self._counts[shard] += 1
        if len(self._recent) > COUNTED_BATCHES:
            self._counts[self._recent.popleft()] -= 1
