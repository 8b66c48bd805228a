"""n-step transitions from the steps of one lane (NumPy, pure).

A run is M consecutive steps of one lane; episodes may end inside it. Step t leads from
observation t to next observation t, which is the final observation if the episode ends.
"""

from __future__ import annotations

import numpy as np

from apex_zmq.types import TRANSITION, Bools, Float32s, Transitions


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
