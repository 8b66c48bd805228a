from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_zmq.agent.optimizers import CenteredRMSProp, make_optimizer
from apex_zmq.config.settings import Learner

DECAY, LR, EPS = 0.95, 0.01, 1e-3


def test_centered_rmsprop_matches_a_numpy_reference() -> None:
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    parameters = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    optimizer = CenteredRMSProp(parameters, LR, DECAY, EPS)

    expected = [start.copy() for start in starts]
    mean = [np.zeros_like(start) for start in starts]
    square = [np.zeros_like(start) for start in starts]
    for _ in range(50):
        for i, parameter in enumerate(parameters):
            gradient = rng.normal(0.5, 2.0, size=starts[i].shape)
            parameter.grad = torch.tensor(gradient)
            mean[i] = DECAY * mean[i] + (1 - DECAY) * gradient
            square[i] = DECAY * square[i] + (1 - DECAY) * gradient**2
            expected[i] -= LR * gradient / np.sqrt(square[i] - mean[i] ** 2 + EPS)
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-10)


def test_a_steady_gradient_never_gives_nan() -> None:
    """Its variance is 0 up to rounding, of either sign, which a tiny eps does not cover."""
    parameter = torch.nn.Parameter(torch.zeros(1000))
    gradient = torch.linspace(1, 40, 1000)
    optimizer = CenteredRMSProp([parameter], LR, DECAY, 1e-7)
    for _ in range(500):
        parameter.grad = gradient
        optimizer.step()
    assert parameter.isfinite().all()
    assert (parameter < 0).all()


def test_parameters_without_gradient_are_unchanged() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = CenteredRMSProp([used, unused], LR, DECAY, EPS)
    optimizer.step()
    assert torch.equal(used.detach(), torch.ones(2))
    used.grad = torch.ones(2)
    optimizer.step()
    assert (used < 1).all()
    assert torch.equal(unused.detach(), torch.ones(2))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_settings_reach_the_optimizer(name: str) -> None:
    learner = Learner(optimizer=name, learning_rate=0.125, optimizer_eps=0.25, rmsprop_decay=0.5)  # type: ignore[arg-type]
    optimizer = make_optimizer(learner, [torch.nn.Parameter(torch.ones(1))])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"]) == (0.125, 0.25)
    assert isinstance(optimizer, CenteredRMSProp) == (name == "rmsprop")
    if name == "rmsprop":
        assert group["decay"] == 0.5


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_both_optimizers_minimize_a_quadratic(name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = make_optimizer(Learner(optimizer=name, learning_rate=0.05), [parameter])  # type: ignore[arg-type]
    for _ in range(200):
        optimizer.zero_grad()
        parameter.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert parameter.abs().max() < 0.3
