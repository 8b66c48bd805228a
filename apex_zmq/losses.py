"""TD errors and the loss on them: pure functions of tensors.

Notation: B rows in a batch, A actions, N quantiles of each action's return (QR-DQN: Dabney et al. 2018,
arXiv 1710.10044), s frames in an observation, W = s + n frames in a window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def double_q_target(r_t: Tensor, discount_t: Tensor, z_t_target: Tensor, q_t_selector: Tensor) -> Tensor:
    """Targets r + discount * z_target(s', argmax_a q_selector(s', a)), float32 [B, N].

    Double Q-learning when the selector is the online network (van Hasselt et al. 2016,
    arXiv 1509.06461, eq. 4), plain Q-learning when it is the target itself.

    Args:
        r_t: float32 [B], n-step returns.
        discount_t: float32 [B], gamma^k, 0 where terminal.
        z_t_target: float32 [B, A, N], quantiles of the next observation.
        q_t_selector: float32 [B, A], values whose argmax chooses the next action.
    """
    z_t = of_actions(z_t_target, q_t_selector.argmax(dim=1))
    return r_t.unsqueeze(1) + discount_t.unsqueeze(1) * z_t


def of_actions(z: Tensor, action: Tensor) -> Tensor:
    """[B, N] of [B, A, N]: the quantiles of one action in each row, int64 [B]."""
    return z.take_along_dim(action.view(-1, 1, 1), dim=1).squeeze(1)


def td_loss(z_tm1: Tensor, target: Tensor, weights: Tensor, kind: Literal["l2", "huber"]) -> Tensor:
    """Mean over the batch of weights * loss, a scalar; the targets are constants.

    l2 is 0.5 td^2; huber is the same up to |td| = 1 and |td| - 0.5 beyond. With several quantiles
    each of them is regressed on every target, errors counting 2 tau above and 2 (1 - tau) below it,
    tau = (i + 0.5) / N (Dabney et al. 2018, eq. 10, averaged over both): with one that is a factor of 1.
    The weights are importance weights (Schaul et al. 2016, arXiv 1511.05952, sec. 3.4).

    Args:
        z_tm1: float32 [B, N], quantiles of the actions taken.
        target: float32 [B, N].
        weights: float32 [B].
        kind: which loss.
    """
    td_error = target.detach().unsqueeze(1) - z_tm1.unsqueeze(2)  # [B, N, targets]
    zeros = torch.zeros_like(td_error)
    loss = 0.5 * td_error.square() if kind == "l2" else functional.huber_loss(td_error, zeros, reduction="none")
    quantiles = z_tm1.shape[1]
    tau = (torch.arange(quantiles, device=z_tm1.device) + 0.5) / quantiles
    slope = 2 * (tau.unsqueeze(1) - (td_error.detach() < 0).to(torch.float32)).abs()
    return (weights * (slope * loss).mean(dim=(1, 2))).mean()


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
