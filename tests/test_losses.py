from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_zmq.losses import double_q_target, of_actions, split_windows, td_loss


def test_double_q_takes_the_selectors_action_and_the_targets_value() -> None:
    target = double_q_target(
        r_t=torch.tensor([10.0, 20.0, 30.0]),
        discount_t=torch.tensor([0.5, 0.9, 0.0]),
        z_t_target=torch.tensor([[[7.0, 6.0], [8.0, 5.0]], [[9.0, 3.0], [1.0, 2.0]], [[50.0, 0.0], [60.0, 0.0]]]),
        q_t_selector=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
    )
    expected = torch.tensor([[10 + 0.5 * 7, 10 + 0.5 * 6], [20 + 0.9 * 1, 20 + 0.9 * 2], [30.0, 30.0]])
    torch.testing.assert_close(target, expected)


def test_with_the_target_as_selector_it_is_plain_q_learning() -> None:
    torch.manual_seed(0)
    following, reward, discount = torch.randn(6, 3, 1), torch.randn(6), torch.rand(6)
    expected = reward + discount * following.squeeze(2).amax(1)
    torch.testing.assert_close(double_q_target(reward, discount, following, following.squeeze(2)).squeeze(1), expected)


def test_gradients_reach_the_taken_actions_values_only() -> None:
    z = torch.zeros(2, 3, 1, requires_grad=True)
    target = torch.ones(2, 1, requires_grad=True)
    td_loss(of_actions(z, torch.tensor([2, 0])), target, torch.ones(2), "l2").backward()  # type: ignore[no-untyped-call]
    assert target.grad is None
    assert z.grad is not None
    assert z.grad.squeeze(2).tolist() == [[0, 0, -0.5], [-0.5, 0, 0]]


def test_losses_by_hand() -> None:
    z, target = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[1.5], [1.0], [6.0], [0.0]])
    weights = torch.tensor([1.0, 0.5, 0.25, 0.0])
    l2 = (1.0 * 0.125 + 0.5 * 0.5 + 0.25 * 4.5) / 4
    huber = (1.0 * 0.125 + 0.5 * 0.5 + 0.25 * 2.5) / 4
    assert td_loss(z, target, weights, "l2").item() == pytest.approx(l2)
    assert td_loss(z, target, weights, "huber").item() == pytest.approx(huber)


def test_huber_gradients_are_clipped_td_errors() -> None:
    td_error = torch.tensor([[0.3], [-0.7], [5.0], [-9.0]])
    z = torch.zeros(4, 1, requires_grad=True)
    td_loss(z, td_error, torch.ones(4), "huber").backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    torch.testing.assert_close(z.grad * -4, td_error.clamp(-1, 1))


def test_the_quantile_loss_by_hand() -> None:
    """Two quantiles, levels 1/4 and 3/4, against two targets each."""
    z, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 0.5]])
    lower = 0.25 * 2.5 + 0.25 * 0.125  # errors 3 and 0.5, both above it
    upper = 0.75 * 1.5 + 0.25 * 0.125  # errors 2, above, and -0.5, below
    assert td_loss(z, target, torch.tensor([0.5]), "huber").item() == pytest.approx(0.5 * 2 * (lower + upper) / 4)


def test_quantiles_settle_at_those_of_the_targets() -> None:
    rng = np.random.default_rng(0)
    returns = np.exp(rng.normal(size=4001)) * 100  # far from the origin, where Huber's loss is the absolute error
    z = torch.full((1, 4), 100.0, requires_grad=True)
    optimizer = torch.optim.SGD([z], lr=4000.0)
    target, weights = torch.from_numpy(returns[None].astype(np.float32)), torch.ones(1)
    for _ in range(300):
        optimizer.zero_grad()
        td_loss(z, target, weights, "huber").backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] *= 0.98
        optimizer.step()
    expected = np.quantile(returns, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(z.detach().numpy()[0], expected, rtol=0.03)


@pytest.mark.parametrize("frame_shape", [(2, 3), (3, 2, 2), (5,)])
@pytest.mark.parametrize("steps_dtype", [torch.int64, torch.uint8])
def test_windows_hold_both_observations(frame_shape: tuple[int, ...], steps_dtype: torch.dtype) -> None:
    batch, stack, n = 7, 4, 3
    windows = torch.randint(0, 256, (batch, stack + n, *frame_shape), dtype=torch.uint8)
    steps = torch.tensor([1, 2, 3, 3, 2, 1, 3], dtype=steps_dtype)
    obs, next_obs = split_windows(windows, steps, stack)
    assert obs.data_ptr() == windows.data_ptr()
    for row in range(batch):
        k = int(steps[row])
        assert torch.equal(obs[row], windows[row, :stack])
        assert torch.equal(next_obs[row], windows[row, k : k + stack])


def test_rows_of_large_batches_do_not_mix_with_byte_sized_steps() -> None:
    windows = torch.arange(300 * 3, dtype=torch.float32).view(300, 3, 1)
    _, next_obs = split_windows(windows, torch.full((300,), 2, dtype=torch.uint8), 1)
    assert torch.equal(next_obs, windows[:, 2:])
