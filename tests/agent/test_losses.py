from __future__ import annotations

import pytest
import torch

from apex_zmq.agent.losses import double_q_target, of_actions, split_windows, td_loss


def test_double_q_takes_the_selectors_action_and_the_targets_value() -> None:
    target = double_q_target(
        r_t=torch.tensor([10.0, 20.0, 30.0]),
        discount_t=torch.tensor([0.5, 0.9, 0.0]),
        q_t_target=torch.tensor([[7.0, 8.0], [9.0, 1.0], [50.0, 60.0]]),
        q_t_selector=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
    )
    torch.testing.assert_close(target, torch.tensor([10 + 0.5 * 7, 20 + 0.9 * 1, 30.0]))


def test_target_as_selector_gives_plain_q_learning() -> None:
    torch.manual_seed(0)
    following, reward, discount = torch.randn(6, 3), torch.randn(6), torch.rand(6)
    expected = reward + discount * following.amax(1)
    torch.testing.assert_close(double_q_target(reward, discount, following, following), expected)


def test_gradients_reach_the_taken_actions_values_only() -> None:
    q = torch.zeros(2, 3, requires_grad=True)
    td_loss(1 - of_actions(q, torch.tensor([2, 0])), torch.ones(2), "l2").backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    assert q.grad.tolist() == [[0, 0, -0.5], [-0.5, 0, 0]]


def test_losses_match_hand_computed_values() -> None:
    td_error = torch.tensor([0.5, -1.0, 3.0, -4.0])
    weights = torch.tensor([1.0, 0.5, 0.25, 0.0])
    l2 = (1.0 * 0.125 + 0.5 * 0.5 + 0.25 * 4.5) / 4
    huber = (1.0 * 0.125 + 0.5 * 0.5 + 0.25 * 2.5) / 4
    assert td_loss(td_error, weights, "l2").item() == pytest.approx(l2)
    assert td_loss(td_error, weights, "huber").item() == pytest.approx(huber)


def test_huber_gradients_are_clipped_td_errors() -> None:
    td_error = torch.tensor([0.3, -0.7, 5.0, -9.0], requires_grad=True)
    td_loss(td_error, torch.ones(4), "huber").backward()  # type: ignore[no-untyped-call]
    assert td_error.grad is not None
    torch.testing.assert_close(td_error.grad * 4, td_error.detach().clamp(-1, 1))


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


def test_uint8_steps_do_not_mix_rows_of_large_batches() -> None:
    windows = torch.arange(300 * 3, dtype=torch.float32).view(300, 3, 1)
    _, next_obs = split_windows(windows, torch.full((300,), 2, dtype=torch.uint8), 1)
    assert torch.equal(next_obs, windows[:, 2:])
