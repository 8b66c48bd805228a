"""TD errors and the loss on them: pure functions of tensors.

Notation: B rows in a batch, A actions, s frames in an observation, W = s + n frames in a window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

RESCALING_EPS = 1e-3
ALPHA, TAU, LEAST = 0.9, 0.03, -1.0

def double_q_target(r_t: Tensor, discount_t: Tensor, q_t_target: Tensor, q_t_selector: Tensor) -> Tensor:
    """Targets r + discount * q_target(s', argmax_a q_selector(s', a)), float32 [B].

    Double Q-learning when the selector is the online network (van Hasselt et al. 2016,
    arXiv 1509.06461, eq. 4), plain Q-learning when it is the target itself.

    Args:
        r_t: float32 [B], n-step returns.
        discount_t: float32 [B], gamma^k, 0 where terminal.
        q_t_target: float32 [B, A], values of the next observation.
        q_t_selector: float32 [B, A], values whose argmax chooses the next action.
    """
    return r_t + discount_t * of_actions(q_t_target, q_t_selector.argmax(dim=1))


def rescale(x: Tensor) -> Tensor:
    """h(x) = sign(x)(sqrt(|x| + 1) - 1) + eps x (Pohlen et al. 2018, arXiv 1805.11593, sec. 3.2)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + RESCALING_EPS * x


def unscale(h: Tensor) -> Tensor:
    """The inverse of `rescale` (Pohlen et al. 2018, prop. A.2)."""
    eps = RESCALING_EPS
    root = ((1 + 4 * eps * (h.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)
    return h.sign() * (root.square() - 1)


def munchausen_target(
    r_t: Tensor, discount_t: Tensor, q_tm1_target: Tensor, action: Tensor, q_t_target: Tensor
) -> Tensor:
    """Targets with the policy's own log-probability as a reward (Vieillard et al. 2020, arXiv 2007.14430, eq. 2).

    The bonus is of the first of the n steps.
    """
    bonus = of_actions(TAU * functional.log_softmax(q_tm1_target / TAU, dim=1), action).clamp(LEAST, 0)
    log_policy = functional.log_softmax(q_t_target / TAU, dim=1)
    soft = (log_policy.exp() * (q_t_target - TAU * log_policy)).sum(dim=1)
    return r_t + ALPHA * bonus + discount_t * soft


def random_shift(windows: Tensor, pixels: int) -> Tensor:
    """Each row's frames moved by up to `pixels` along both axes, edges repeated (Yarats et al. 2021, arXiv 2004.13649).

    windows: uint8 [B, W, ..., H, W'].
    """
    shifted = torch.empty_like(windows)
    height, width = (torch.arange(size) for size in windows.shape[-2:])
    moves = torch.randint(-pixels, pixels + 1, (len(windows), 2)).tolist()
    for source, result, (down, right) in zip(windows, shifted, moves, strict=True):
        rows = (height + down).clamp_(0, len(height) - 1)
        columns = (width + right).clamp_(0, len(width) - 1)
        torch.index_select(source.index_select(-2, rows), -1, columns, out=result)
    return shifted


def of_actions(q: Tensor, action: Tensor) -> Tensor:
    """[B] of [B, A]: the value of one action in each row, int64 [B]."""
    return q.gather(1, action.unsqueeze(1)).squeeze(1)


def td_loss(td_error: Tensor, weights: Tensor, kind: Literal["l2", "huber"]) -> Tensor:
    """Mean over the batch of weights * loss(td_error), a scalar.

    l2 is 0.5 td^2; huber is the same up to |td| = 1 and |td| - 0.5 beyond. The weights are
    importance weights (Schaul et al. 2016, arXiv 1511.05952, sec. 3.4).

    Args:
        td_error: float32 [B].
        weights: float32 [B].
        kind: which loss.
    """
    zeros = torch.zeros_like(td_error)
    loss = 0.5 * td_error.square() if kind == "l2" else functional.huber_loss(td_error, zeros, reduction="none")
    return (weights * loss).mean()


def split_windows(windows: Tensor, steps: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """The observation and the next observation that each window of frames holds.

    Args:
        windows: [B, W, ...], contiguous.
        steps: integer [B], frames from the observation to the next, 1..W - stack.
        stack: s, frames per observation.

    Returns:
        (observation, next observation), both [B, s, ...]: a view of the windows, and a gather of
        frames steps[b] .. steps[b] + s - 1 of row b, made on the windows' device.
    """
    batch, length = windows.shape[:2]
    starts = torch.arange(batch, device=windows.device) * length + steps
    index = starts.unsqueeze(1) + torch.arange(stack, device=windows.device)
    following = windows.flatten(0, 1).index_select(0, index.flatten())
    return windows[:, :stack], following.view(batch, stack, *windows.shape[2:])
