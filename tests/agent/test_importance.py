from __future__ import annotations

import numpy as np
import pytest

from apex_zmq.agent.importance import Draw, ImportanceWeights, beta_at
from apex_zmq.replay.sum_tree import SumTree


def weigh(
    importance: ImportanceWeights,
    priorities: list[float],
    shard: int = 0,
    shard_incarnation: int = 1,
    mass: float = 50.0,
    num_transitions: int = 100,
    beta: float = 0.5,
    now: float = 0.0,
) -> list[float]:
    draw = Draw(shard, shard_incarnation, mass, num_transitions, min(priorities))
    weights = importance.weigh([draw], 0, np.array(priorities), beta, now)
    assert weights.dtype == np.float32
    return [float(weight) for weight in weights]


def test_one_shard_weights_are_per_over_averaged_maximum() -> None:
    importance = ImportanceWeights()
    first = (100 * np.array([1.0, 2.0, 4.0]) / 50) ** -0.5
    assert weigh(importance, [1.0, 2.0, 4.0]) == pytest.approx(first / first[0])
    second = (200 * np.array([2.0, 8.0]) / 80) ** -0.7
    divisor = 0.99 * first[0] + 0.01 * second[0]
    got = weigh(importance, [2.0, 8.0], num_transitions=200, mass=80.0, beta=0.7)
    assert got == pytest.approx(second / divisor)


def test_equal_priorities_in_one_shard_have_weight_one() -> None:
    importance = ImportanceWeights()
    for _ in range(3):
        assert weigh(importance, [0.5] * 4, beta=0.4) == pytest.approx([1.0] * 4)


def test_shard_shares_use_sizes_first_and_batch_counts_later() -> None:
    """With beta 1 and p = M the weight is 1 / (N f_s), times the divisor that both shards share."""
    importance = ImportanceWeights()
    for _ in range(2):  # the second shard's first batch restarts the counts
        weigh(importance, [1.0], shard=0, mass=1.0, num_transitions=300, beta=1.0)
        weigh(importance, [1.0], shard=1, mass=1.0, num_transitions=100, beta=1.0)
    for _ in range(2000):
        weigh(importance, [1.0], shard=0, mass=1.0, num_transitions=300, beta=1.0)
    (common,) = weigh(importance, [1.0], shard=0, mass=1.0, num_transitions=300, beta=1.0)
    (rare,) = weigh(importance, [1.0], shard=1, mass=1.0, num_transitions=100, beta=1.0)
    # Last 1,000 batches: all from shard 0, then 999 of them and 1 from shard 1.
    divisor = 1 / 400  # constant for 1,000 batches and more, up to 0.99^1000
    assert common == pytest.approx(1 / 400 / divisor, rel=1e-3)
    share_rare = 1 / 1000
    divisor += 0.01 * (1 / (400 * share_rare) - divisor)
    assert rare == pytest.approx(1 / (400 * share_rare) / divisor, rel=1e-3)


def test_shard_sizes_are_a_prior_that_batch_counts_replace() -> None:
    importance = ImportanceWeights()
    found = {}
    for number in range(1, 1001):
        shard = 1 if number in (2, 3) else 0  # the second batch restarts the counts
        draw = Draw(shard, 1, 1.0, 300 - 200 * shard, 1.0)
        importance.account([draw], 0.0)
        weights = importance.unnormalized(draw, np.ones(1), 1.0)
        found[number - 1] = shard, 1 / (400 * float(weights[0]))
    for count, (shard, counted) in {1: (1, 1), 2: (1, 2), 3: (0, 1), 500: (0, 498), 999: (0, 997)}.items():
        prior = 100 - count / 10
        size = 0.25 if shard else 0.75
        assert found[count][0] == shard
        assert found[count][1] == pytest.approx((counted + prior * size) / (count + prior))


def test_a_new_shard_and_a_new_incarnation_restart_mean_and_counts() -> None:
    importance = ImportanceWeights()
    weigh(importance, [1e-4], shard_incarnation=1)
    assert weigh(importance, [4.0], shard_incarnation=1)[0] < 0.01
    assert weigh(importance, [4.0], shard_incarnation=2) == pytest.approx([1.0])
    weigh(importance, [1e-4], shard_incarnation=2)
    assert weigh(importance, [4.0], shard=1) == pytest.approx([1.0])


def test_silent_shard_is_dropped_after_shard_timeout() -> None:
    importance = ImportanceWeights(shard_timeout_s=30.0)
    weigh(importance, [1e-4], shard=1, now=0.0)
    weigh(importance, [1e-4], shard=0, now=1.0)
    assert weigh(importance, [4.0], shard=0, now=30.0)[0] < 0.01
    assert weigh(importance, [4.0], shard=0, now=30.5) == pytest.approx([1.0])
    # Alone again: N is its own size, its share is 1.
    weights = [weigh(importance, [p], shard=0, now=31.0, beta=1.0)[0] for p in (4.0, 2.0)]
    assert weights[1] / weights[0] == pytest.approx(2.0, rel=0.02)


SIZES, SCALES = (200, 800, 400), (4.0, 1.0, 0.5)


@pytest.mark.parametrize("rates", [(0.2, 0.5, 0.3), (0.6, 0.1, 0.3)])
def test_weighted_means_over_unequal_shards_are_the_uniform_mean(rates: tuple[float, ...]) -> None:
    """At beta 1, unnormalised, real trees: within four standard errors, taken over blocks of batches.

    A count reaches back 1,000 batches, so blocks of 2,000 are nearly independent.
    """
    rng = np.random.default_rng(3)
    priorities = [rng.gamma(1.0, scale, size) + 0.1 for size, scale in zip(SIZES, SCALES, strict=True)]
    # What is averaged depends on shard and priority, so that each kind of bias shows.
    values = [p / p.mean() + 3 * shard for shard, p in enumerate(priorities)]
    truth = np.concatenate(values).mean()
    trees = []
    for p in priorities:
        trees.append(SumTree(len(p)))
        trees[-1].set_range(0, len(p), p)

    importance = ImportanceWeights()
    weighted, unweighted, ones = [], [], []
    for number, shard in enumerate(rng.choice(3, 41_000, p=rates).tolist()):
        tree, rows = trees[shard], trees[shard].stratified(8, rng)
        p = tree.get(rows)
        draw = Draw(shard, 1, tree.total, SIZES[shard], p.min())
        importance.account([draw], number / 1000)
        weights = importance.unnormalized(draw, p, 1.0)
        weighted.append(weights @ values[shard][rows] / 8)
        unweighted.append(values[shard][rows].mean())
        ones.append(weights.mean())
    for means, expected in ((weighted, truth), (ones, 1.0)):
        blocks = np.reshape(means[1000:], (20, 2000)).mean(axis=1)
        error = blocks.std(ddof=1) / np.sqrt(len(blocks))
        assert error < 0.015 * expected, "too few batches to tell"
        assert abs(blocks.mean() - expected) < 4 * error
    assert abs(np.mean(unweighted) - truth) > 0.1 * truth


def test_weights_are_correct_after_a_shard_leaves_and_returns() -> None:
    """Whoever is left, and whoever is back with another incarnation and size, is weighed as if nothing had been."""

    def weights(importance: ImportanceWeights, batches: list[tuple[int, int, int, float]]) -> list[float]:
        return [
            weigh(importance, [0.5, 2.0], shard, shard_incarnation, 60.0, size, 1.0, now)[1]
            for shard, shard_incarnation, size, now in batches
        ]

    def dealt(shards: tuple[tuple[int, int, int], ...], begin: float) -> list[tuple[int, int, int, float]]:
        return [(*shards[number % len(shards)], begin + number / 10) for number in range(40)]

    both = dealt(((0, 7, 300), (0, 7, 300), (1, 8, 100)), 0.0)
    alone = dealt(((0, 7, 300),), 60.0)  # shard 1 has been silent for more than 30 s
    again = dealt(((1, 9, 40), (0, 7, 300)), 64.0)
    importance = ImportanceWeights()
    weights(importance, both)
    assert weights(importance, alone) == weights(ImportanceWeights(), alone)
    fresh = ImportanceWeights()
    assert weights(fresh, [(0, 7, 300, 63.9)])  # heard of, so that it is live from the first batch on
    assert weights(importance, again) == weights(fresh, again)


def test_ranks_compute_the_weights_of_one_joined_batch() -> None:
    rng = np.random.default_rng(5)
    ranks, joined = [ImportanceWeights(), ImportanceWeights()], ImportanceWeights()
    for step in range(20):
        mine = [rng.gamma(1.0, 1.0, 8) + 0.1, rng.gamma(1.0, 1.0, 8) + 0.1]
        draws = [Draw(0, 1, 50.0 + step, 100, p.min()) for p in mine]
        found = [rank.weigh(draws, number, mine[number], 0.6, float(step)) for number, rank in enumerate(ranks)]
        together = np.concatenate(mine)
        wanted = joined.weigh([Draw(0, 1, 50.0 + step, 100, together.min())], 0, together, 0.6, float(step))
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-6)


def test_ranks_count_the_batches_of_all_ranks() -> None:
    """Each is dealt to by a shard of its own, one of them three times as large: shares are halves."""
    ranks = ImportanceWeights(), ImportanceWeights()
    draws = [Draw(0, 1, 1.0, 300, 1.0), Draw(1, 1, 1.0, 100, 1.0)]
    for _ in range(500):
        weights = [rank.weigh(draws, number, np.ones(1), 1.0, 0.0) for number, rank in enumerate(ranks)]
    for rank, draw in zip(ranks, draws, strict=True):
        assert rank.unnormalized(draw, np.ones(1), 1.0) == pytest.approx(1 / (400 * 0.5))
    np.testing.assert_array_equal(weights[0], weights[1])


def test_beta_rises_to_one() -> None:
    assert beta_at(0.4, 0.001, 0) == 0.4
    assert beta_at(0.4, 0.001, 100) == pytest.approx(0.5)
    assert beta_at(0.4, 0.001, 10_000) == 1.0
    assert beta_at(0.4, 0.0, 10**9) == 0.4
