"""TD errors and their loss, as pure functions of tensors.

Notation: B rows in a batch, A actions, s frames in an observation, n the n-step horizon, W = s + n frames in a window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def double_q_target(r_t: Tensor, discount_t: Tensor, q_t_target: Tensor, q_t_selector: Tensor) -> Tensor:
    """Return targets r_t + discount_t * q_t_target(argmax_a q_t_selector(a)), float32 [B].

    Double Q-learning if the selector is the online network (van Hasselt et al. 2016, arXiv 1509.06461, eq. 4);
    plain Q-learning if it is the target network.

    Args:
        r_t: float32 [B], n-step returns.
        discount_t: float32 [B], gamma^k over k <= n steps; 0 at terminal states.
        q_t_target: float32 [B, A], target network's values of the next observation.
        q_t_selector: float32 [B, A], values whose argmax selects the next action.
    """
    return r_t + discount_t * of_actions(q_t_target, q_t_selector.argmax(dim=1))


def of_actions(q: Tensor, action: Tensor) -> Tensor:
    """Return the values of actions, [B].

    Args:
        q: [B, A].
        action: int64 [B].
    """
    return q.gather(1, action.unsqueeze(1)).squeeze(1)


def td_loss(td_error: Tensor, weights: Tensor, kind: Literal["l2", "huber"]) -> Tensor:
    """Return the mean over the batch of weights * loss(td_error), float32 [].

    l2 is 0.5 td^2; huber is the same up to |td| = 1 and |td| - 0.5 beyond. The weights are
    importance weights (Schaul et al. 2016, arXiv 1511.05952, sec. 3.4).

    Args:
        td_error: float32 [B].
        weights: float32 [B].
        kind: name of the loss.
    """
    zeros = torch.zeros_like(td_error)
    loss = 0.5 * td_error.square() if kind == "l2" else functional.huber_loss(td_error, zeros, reduction="none")
    return (weights * loss).mean()


def split_windows(windows: Tensor, steps: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """Split windows of frames into observations and next observations.

    Args:
        windows: [B, W, *frame shape], contiguous.
        steps: int64 [B], k, frames from the observation to the next, 1 to W - stack.
        stack: s, frames per observation.

    Returns:
        (observation, next observation), both [B, s, *frame shape]: a view of the windows, and a copy of frames
        steps[b] to steps[b] + s - 1 of each row b on the windows' device.
    """
    batch, length = windows.shape[:2]
    starts = torch.arange(batch, device=windows.device) * length + steps
    index = starts.unsqueeze(1) + torch.arange(stack, device=windows.device)
    following = windows.flatten(0, 1).index_select(0, index.flatten())
    return windows[:, :stack], following.view(batch, stack, *windows.shape[2:])
