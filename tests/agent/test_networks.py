from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apex_zmq.agent.networks import ConvTorso, Head, load_arrays, make_network, to_arrays
from apex_zmq.config.settings import Agent
from apex_zmq.types import FrameSpec

SMALL_FRAME = FrameSpec((48, 60), "uint8", 4)


def random_frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "frame", "count"),
    [
        ("small", SMALL_FRAME, 407_349),
        # Convolutions 8,224 + 32,832 + 36,928; heads of 512 on 64 x 7 x 7 features.
        ("nature", FrameSpec((84, 84), "uint8", 4), 77_984 + 3136 * 1024 + 1024 + 513 + 4 * 513),
        ("mlp", FrameSpec((4,), "float32", 1), 5 * 128 + 129 * 128 + 2 * 256 + 129 * 256 + 129 + 4 * 129),
    ],
)
def test_parameter_counts(name: Any, frame: FrameSpec, count: int) -> None:
    network = make_network(Agent(name), frame, num_actions=4)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("small", SMALL_FRAME),
        ("small", FrameSpec((3, 20, 20), "uint8", 2)),
        ("nature", FrameSpec((36, 36), "uint8", 1)),
        ("nature", FrameSpec((3, 84, 84), "uint8", 4)),
        ("mlp", FrameSpec((4,), "float32", 3)),
        ("mlp", FrameSpec((9, 9), "uint8", 2)),
    ],
)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dueling", [True, False])
def test_q_values_of_every_input_shape(name: Any, frame: FrameSpec, dueling: bool, layer_norm: bool) -> None:
    observation = random_frames(5, frame.stack, *frame.shape)
    if frame.dtype == "float32":
        observation = observation.float() / 255
    q = make_network(Agent(name, dueling, layer_norm), frame, num_actions=6)(observation)
    assert q.shape == (5, 6)
    assert q.dtype == torch.float32
    assert q.isfinite().all()


@pytest.mark.parametrize("name", ["small", "mlp"])
def test_layer_norm_makes_outputs_independent_of_weight_scale(name: Any) -> None:
    frame = SMALL_FRAME if name == "small" else FrameSpec((4,), "float32", 1)
    network = make_network(Agent(name, layer_norm=True), frame, 3, seed=0)
    observation = random_frames(2, frame.stack, *frame.shape)
    before = network(observation)
    with torch.no_grad():
        for module in (*network.torso.modules(), network.head.hidden):
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.weight *= 10
                assert module.bias is not None
                module.bias *= 10
    torch.testing.assert_close(network(observation), before, rtol=0.01, atol=0.01)


def test_a_window_view_gives_the_same_values_as_a_copy() -> None:
    network = make_network(Agent("small"), FrameSpec((3, 20, 24), "uint8", 4), 3, seed=0)
    view = random_frames(2, 6, 3, 20, 24)[:, :4]
    assert not view.is_contiguous()
    torch.testing.assert_close(network(view), network(view.contiguous()), rtol=0, atol=0)


def test_convolutions_get_scaled_pixels_and_color_as_channels() -> None:
    network = make_network(Agent("small"), FrameSpec((3, 20, 24), "uint8", 2), 3, seed=0)
    frames = random_frames(2, 2, 3, 20, 24)
    torso = network.torso
    assert isinstance(torso, ConvTorso)
    hidden = frames.reshape(2, 6, 20, 24).float() / 255
    for convolution in torso.convolutions:
        hidden = torch.relu(convolution(hidden))
    torch.testing.assert_close(torso(frames), hidden.flatten(1), rtol=1e-4, atol=1e-5)


def test_mlp_scales_pixels_but_not_vectors() -> None:
    pixels = make_network(Agent("mlp"), FrameSpec((4,), "uint8", 1), 2, seed=0)
    vectors = make_network(Agent("mlp"), FrameSpec((4,), "float32", 1), 2, seed=0)
    frames = random_frames(3, 1, 4)
    torch.testing.assert_close(pixels(frames), vectors(frames.float() / 255))


def test_dueling_head_is_value_plus_centered_advantage() -> None:
    torch.manual_seed(0)
    head = Head(10, width=8, num_actions=3, agent=Agent())
    assert head.value is not None
    features = torch.randn(4, 10)
    hidden = torch.relu(features @ head.hidden.weight.T + head.hidden.bias)
    value = head.value(hidden[:, :8])
    advantage = head.advantage(hidden[:, 8:])
    torch.testing.assert_close(head(features), value + advantage - advantage.mean(1, keepdim=True))
    torch.testing.assert_close(head(features).mean(1, keepdim=True), value)


def test_seed_determines_weights_and_torch_rng_is_unchanged() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make_network(Agent("small"), SMALL_FRAME, 4, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = make_network(Agent("small"), SMALL_FRAME, 4, seed=7).state_dict()
    other = make_network(Agent("small"), SMALL_FRAME, 4, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["torso.convolutions.0.weight"], other["torso.convolutions.0.weight"])


@pytest.mark.parametrize(
    ("name", "frame", "message"),
    [
        ("nature", FrameSpec((4,), "float32", 1), "nature needs uint8 images .* use mlp"),
        ("small", FrameSpec((48, 60), "float32", 1), "small needs uint8 images"),
        ("nature", FrameSpec((84, 35), "uint8", 4), "at least 36x36, not 84x35"),
        ("small", FrameSpec((19, 60), "uint8", 4), "at least 20x20, not 19x60"),
    ],
)
def test_networks_that_do_not_fit_the_frame_are_refused(name: Any, frame: FrameSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_network(Agent(name), frame, 4)


def test_zero_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one action"):
        make_network(Agent("mlp"), FrameSpec((4,), "float32", 1), 0)


def test_parameters_round_trip_as_arrays() -> None:
    source = make_network(Agent("mlp"), FrameSpec((4,), "float32", 1), 2, seed=0)
    other = make_network(Agent("mlp"), FrameSpec((4,), "float32", 1), 2, seed=1)
    arrays = to_arrays(source)
    received = {name: np.frombuffer(array.tobytes(), np.float32).reshape(array.shape) for name, array in arrays.items()}
    load_arrays(other, received)
    observation = torch.randn(3, 1, 4)
    assert torch.equal(source(observation), other(observation))

    arrays["head.hidden.bias"][:] = 100.0
    assert (source.head.hidden.bias < 100.0).all()


def test_arrays_of_another_network_are_refused() -> None:
    network = make_network(Agent("mlp"), FrameSpec((4,), "float32", 1), 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_arrays(network, to_arrays(make_network(Agent("mlp"), FrameSpec((4,), "float32", 1), 3)))
