"""n-step transitions from the steps of one lane (NumPy, pure).

A run is M consecutive steps of one lane; episodes may end inside it. Step t leads from
observation t to next observation t, which is the final observation if the episode ends.
"""

from __future__ import annotations

import numpy as np

from apex_zmq.types import TRANSITION, Bools, Float32s, Int64s, Transitions


def num_complete(ends: Bools, n: int) -> int:
    """Return the number of leading steps with a complete transition: n steps long, or ended by the episode.

    Args:
        ends: bool [M], where an episode terminated or was truncated.
        n: the horizon.
    """
    after_last_end = int(np.flatnonzero(ends)[-1]) + 1 if ends.any() else 0
    return max(len(ends) - n + 1, after_last_end, 0)


def n_step_transitions(
    reward: Float32s,
    terminated: Bools,
    truncated: Bools,
    q_taken: Float32s,
    next_value: Float32s,
    n: int,
    gamma: float,
    *,
    cut: bool = False,
) -> Transitions:
    """Return the transitions of the T = num_complete(terminated | truncated, n) complete steps of a run.

    Returns end with their episode: they bootstrap from the final observation after a truncation, and
    not at all after a termination (discount 0). Initial priorities follow Horgan et al. 2018
    (arXiv 1803.00933, algorithm 1): |TD| from the values that the actor has computed to act.

    Args:
        reward: float32 [M], reward of each step.
        terminated: bool [M], the step ended the episode in a terminal state.
        truncated: bool [M], the step ended the episode otherwise; termination takes precedence.
        q_taken: float32 [M], Q(observation t, action t).
        next_value: float32 [M], max_a Q(next observation t, a); ignored where terminated.
        n: the horizon, 1..255.
        gamma: discount per step.
        cut: end returns before exploratory actions that did worse than the greedy ones would have, see `cut_ends`.

    Returns:
        [T] of TRANSITION: reward, discount, td_error and steps; the other fields are 0. The transition of step t ends
        at next observation t + steps[t] - 1.
    """
    ends = terminated | truncated
    total = len(reward)
    count = num_complete(ends, n)
    step = np.arange(count)
    # Index of the first end at or after each step; `total` if there is none.
    episode_end = np.minimum.accumulate(np.where(ends, np.arange(total), total)[::-1])[::-1][:count]
    last = np.minimum(step + n - 1, episode_end)
    if cut:
        last = cut_ends(last, reward, terminated, q_taken, next_value, gamma)
    steps = last - step + 1

    powers = np.power(float(gamma), np.arange(n + 1))
    window = step[:, None] + np.arange(n)
    rewards = np.where(window <= last[:, None], reward[np.minimum(window, total - 1)], 0.0)
    returns = rewards @ powers[:n]
    discount = np.where(terminated[last], 0.0, powers[steps])
    bootstrap = np.where(terminated[last], 0.0, next_value[last])
    td_error = np.abs(returns + discount * bootstrap - q_taken[:count])
    transitions = np.zeros(count, TRANSITION)
    transitions["reward"], transitions["discount"] = returns, discount
    transitions["td_error"], transitions["steps"] = td_error, steps
    return transitions


def cut_ends(
    last: Int64s, reward: Float32s, terminated: Bools, q_taken: Float32s, next_value: Float32s, gamma: float
) -> Int64s:
    """Return where n-step returns end if they exclude exploratory actions that did worse than the greedy ones.

    An n-step return also holds the consequences of exploration: one bad action later makes this one look bad. Watkins'
    Q(lambda) (1989) ends returns before every exploratory action, which forgets what exploration found. Here a return
    ends before an exploratory action only if what followed, with the actor's own value of its end, is less than the
    actor's value of the observation; so it stays a lower bound of the optimal value where the game is deterministic
    (He et al. 2016, arXiv 1611.01606).

    Args:
        last: int64 [T], the last step of each return, T <= M; in the same episode as its first.
        reward: float32 [M], this and the others as of `n_step_transitions`.
        terminated: bool [M].
        q_taken: float32 [M].
        next_value: float32 [M].
        gamma: discount per step.

    Returns:
        int64 [T], from each step to its `last`.
    """
    step = np.arange(len(last))
    value = np.where(terminated[last], 0.0, next_value[last])  # of the return from the current offset on
    ends = last.copy()
    for offset in range(int((last - step).max(initial=0)), -1, -1):
        now = np.minimum(step + offset, last)
        inside = step + offset <= last
        value = np.where(inside, reward[now] + gamma * value, value)
        if offset > 0:
            greedy = next_value[now - 1]  # max_a Q of the observation in which step `now` was taken
            worse = inside & (q_taken[now] < greedy) & (value < greedy)
            value, ends = np.where(worse, greedy, value), np.where(worse, now - 1, ends)
    return ends
