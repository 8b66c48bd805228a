from __future__ import annotations

import numpy as np
import pytest

from apex_zmq.agent.exploration import Explorer, elastic_epsilon, ladder
from apex_zmq.types import Int64s


def test_ladder_matches_the_paper() -> None:
    assert ladder(0.4, 7.0, 0, 8) == pytest.approx(0.4)
    assert ladder(0.4, 7.0, 3, 8) == pytest.approx(0.4**4)
    assert ladder(0.4, 7.0, 7, 8) == pytest.approx(0.4**8)


def test_ladder_of_one_lane_and_of_no_exploration() -> None:
    assert ladder(0.4, 7.0, 0, 1) == pytest.approx(0.4)
    assert ladder(0.0, 7.0, 3, 8) == 0.0


def test_elastic_exponents_are_uniform_over_the_ladder_and_stratified_over_lanes() -> None:
    rng = np.random.default_rng(0)
    lanes = 4
    for lane in range(lanes):
        epsilons = np.array([elastic_epsilon(0.4, 7.0, lane, lanes, rng) for _ in range(4000)])
        u = (np.log(epsilons) / np.log(0.4) - 1) / 7
        assert u.min() >= lane / lanes - 1e-9
        assert u.max() <= (lane + 1) / lanes
        counts, _ = np.histogram(u, bins=4, range=(lane / lanes, (lane + 1) / lanes))
        assert counts == pytest.approx(np.full(4, 1000), abs=150)


def play(explorer: Explorer, epsilon: list[float], decisions: int) -> Int64s:
    """[decisions, L] actions; the greedy action is -1, so that random ones show."""
    lanes = len(epsilon)
    return np.array([explorer.act(np.full(lanes, -1), np.array(epsilon)) for _ in range(decisions)])


def test_random_actions_are_uniform_at_each_lanes_rate() -> None:
    explorer = Explorer(3, 4, None, 12, np.random.default_rng(1))
    actions = play(explorer, [0.0, 0.3, 1.0], 10_000)
    rates = (actions >= 0).mean(axis=0)
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(0.3, abs=0.015)
    assert rates[2] == 1.0
    frequencies = np.bincount(actions[:, 2], minlength=4) / 10_000
    assert frequencies == pytest.approx(np.full(4, 0.25), abs=0.015)


def test_repeats_follow_the_capped_zeta_law() -> None:
    """With more actions than decisions, two neighboring repeats practically never share one."""
    longest, zeta = 12, 2.0
    explorer = Explorer(20, 1 << 40, zeta, longest, np.random.default_rng(2))
    actions = play(explorer, [1.0] * 20, 2000)
    durations = np.concatenate([np.diff(np.flatnonzero(np.diff(lane))) for lane in actions.T])
    law = np.arange(1, longest + 1.0) ** -zeta
    law *= 6 / np.pi**2
    law[-1] += 1 - law.sum()
    frequencies = np.bincount(durations, minlength=longest + 1)[1:] / len(durations)
    assert frequencies == pytest.approx(law, abs=0.01)


def test_repeats_raise_the_random_share_as_expected() -> None:
    epsilon, longest = 0.1, 12
    explorer = Explorer(20, 4, 2.0, longest, np.random.default_rng(3))
    share = (play(explorer, [epsilon] * 20, 3_000) >= 0).mean()
    tails = [1 - (6 / np.pi**2) * np.sum(np.arange(1.0, k) ** -2) for k in range(1, longest + 1)]
    mean_duration = sum(tails)
    assert share == pytest.approx(epsilon * mean_duration / (epsilon * mean_duration + 1 - epsilon), rel=0.05)


def test_repeat_continues_when_epsilon_drops_and_ends_at_reset() -> None:
    explorer = Explorer(2, 4, 1.01, 10, np.random.default_rng(4))  # zeta near 1: practically always the cap
    greedy = np.array([-1, -1])
    first = explorer.act(greedy, np.array([1.0, 1.0]))
    assert (explorer.act(greedy, np.zeros(2)) == first).all()
    explorer.reset(1)
    assert explorer.act(greedy, np.zeros(2)).tolist() == [first[0], -1]
    later = play(explorer, [0.0, 0.0], 8)
    assert later[:, 0].tolist() == [first[0]] * 7 + [-1]
    assert (later[:, 1] == -1).all()


def test_equal_generator_seeds_give_equal_actions() -> None:
    runs = [play(Explorer(2, 4, 2.0, 12, np.random.default_rng(5)), [0.5, 0.5], 50) for _ in range(2)]
    assert (runs[0] == runs[1]).all()
