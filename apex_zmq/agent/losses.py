"""TD errors and the loss on them: pure functions of tensors.

Notation: B rows in a batch, A actions, s frames in an observation, W = s + n frames in a window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


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
