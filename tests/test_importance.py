from __future__ import annotations

import numpy as np
import pytest

from apex_zmq.importance import ImportanceWeights, beta_at


def weigh(
    importance: ImportanceWeights,
    priorities: list[float],
    shard: int = 0,
    generation: int = 1,
    mass: float = 50.0,
    num_transitions: int = 100,
    beta: float = 0.5,
    now: float = 0.0,
) -> list[float]:
    weights = importance.weigh(shard, generation, np.array(priorities), mass, num_transitions, beta, now)
    assert weights.dtype == np.float32
    return [float(weight) for weight in weights]


def test_one_shard_is_plain_per_over_a_slow_mean_of_maxima() -> None:
    importance = ImportanceWeights()
    first = (100 * np.array([1.0, 2.0, 4.0]) / 50) ** -0.5
    assert weigh(importance, [1.0, 2.0, 4.0]) == pytest.approx(first / first[0])
    second = (200 * np.array([2.0, 8.0]) / 80) ** -0.7
    divisor = 0.99 * first[0] + 0.01 * second[0]
    got = weigh(importance, [2.0, 8.0], num_transitions=200, mass=80.0, beta=0.7)
    assert got == pytest.approx(second / divisor)


def test_equal_priorities_in_one_shard_weigh_one() -> None:
    importance = ImportanceWeights()
    for _ in range(3):
        assert weigh(importance, [0.5] * 4, beta=0.4) == pytest.approx([1.0] * 4)


def test_shares_follow_sizes_at_first_and_counts_later() -> None:
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
    share_common = (1000 + 75) / 1100
    share_rare = (1 + 25) / 1100
    divisor = 1 / (400 * share_common)  # constant for 1,000 batches and more, up to 0.99^1000
    assert common == pytest.approx(1 / (400 * share_common) / divisor, rel=1e-3)
    divisor += 0.01 * (1 / (400 * share_rare) - divisor)
    assert rare == pytest.approx(1 / (400 * share_rare) / divisor, rel=1e-3)


def test_a_new_shard_and_a_new_generation_restart_mean_and_counts() -> None:
    importance = ImportanceWeights()
    weigh(importance, [1e-4], generation=1)
    assert weigh(importance, [4.0], generation=1)[0] < 0.01
    assert weigh(importance, [4.0], generation=2) == pytest.approx([1.0])
    weigh(importance, [1e-4], generation=2)
    assert weigh(importance, [4.0], shard=1) == pytest.approx([1.0])


def test_a_silent_shard_is_forgotten() -> None:
    importance = ImportanceWeights(shard_timeout_s=30.0)
    weigh(importance, [1e-4], shard=1, now=0.0)
    weigh(importance, [1e-4], shard=0, now=1.0)
    assert weigh(importance, [4.0], shard=0, now=30.0)[0] < 0.01
    assert weigh(importance, [4.0], shard=0, now=30.5) == pytest.approx([1.0])
    # Alone again: N is its own size, its share is 1.
    weights = [weigh(importance, [p], shard=0, now=31.0, beta=1.0)[0] for p in (4.0, 2.0)]
    assert weights[1] / weights[0] == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    ("arrival", "tolerance"),
    # Where batches do not arrive in proportion to sizes, the prior of 100 batches leaves about 3%.
    [((0.2, 0.8), 0.01), ((2 / 3, 1 / 3), 0.045)],
)
def test_unequal_shards_give_an_unbiased_mean_at_beta_1(arrival: tuple[float, float], tolerance: float) -> None:
    """A fifth of the data has half of the mass; sampled by priority, weighted, its mean is the plain mean."""
    rng = np.random.default_rng(3)
    priorities = [rng.gamma(1.0, scale, size) + 0.1 for size, scale in ((200, 4.0), (800, 1.0))]
    # What is averaged depends on shard and priority, so that each kind of bias shows.
    values = [p / p.mean() + 3 * shard for shard, p in enumerate(priorities)]
    truth = np.concatenate(values).mean()

    importance = ImportanceWeights()
    sums = np.zeros(2)  # of weighted values, of weights
    unweighted, batches, warm = 0.0, 6000, 1000
    for number in range(batches):
        shard = int(rng.random() > arrival[0])
        p = priorities[shard]
        rows = rng.choice(len(p), 32, p=p / p.sum())
        weights = importance.weigh(shard, 1, p[rows], p.sum(), len(p), 1.0, number / 100)
        if number >= warm:
            sums += float(weights @ values[shard][rows]), float(weights.sum())
            unweighted += float(values[shard][rows].mean()) / (batches - warm)
    assert sums[0] / sums[1] == pytest.approx(truth, rel=tolerance)
    assert abs(unweighted - truth) > 3 * tolerance * truth


def test_beta_rises_to_one() -> None:
    assert beta_at(0.4, 0.001, 0) == 0.4
    assert beta_at(0.4, 0.001, 100) == pytest.approx(0.5)
    assert beta_at(0.4, 0.001, 10_000) == 1.0
    assert beta_at(0.4, 0.0, 10**9) == 0.4
