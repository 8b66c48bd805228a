"""Q-networks by name (torch).

Sources: the dueling architecture of Wang et al. 2016 (arXiv 1511.06581, eq. 9)
on the convolutions of Mnih et al. 2015 (Nature 518, Methods) or smaller torsos; layer norm of Ba et al. 2016
(arXiv 1607.06450).
"""

from __future__ import annotations

import contextlib
import math
import typing
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from apex_zmq.config.settings import Agent
from apex_zmq.errors import UserError
from apex_zmq.types import Float32s, FrameSpec


class NetworkError(UserError, ValueError):
    """The network does not fit its observations or actions."""


class Convolution(NamedTuple):
    """One convolution without padding, then layer norm (if `agent.layer_norm`), then ReLU."""

    channels: int
    kernel: int
    stride: int


CONVOLUTIONS = {
    "nature": (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1)),
    "small": (Convolution(16, 8, 4), Convolution(32, 4, 2)),
}
HEAD_WIDTH = {"nature": 512, "small": 256, "mlp": 128}
MLP_WIDTH = 128


class ConvTorso(nn.Module):
    """uint8 frames [B, s, H, W] or [B, s, C, H, W] -> features float32 [B, num_features]."""

    def __init__(
        self, channels: int, height: int, width: int, layers: tuple[Convolution, ...], layer_norm: bool
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for layer in layers:
            self.convolutions.append(nn.Conv2d(channels, *layer))
            channels, kernel, stride = layer
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            self.norms.append(nn.LayerNorm((channels, height, width)) if layer_norm else nn.Identity())
        self.num_features = channels * height * width

    def forward(self, frames: Tensor) -> Tensor:
        """Features of a batch of stacked frames."""
        pixels = frames.flatten(1, -3).to(torch.float32)
        layers = zip(self.convolutions, self.norms, strict=True)
        convolution, norm = next(layers)
        first = typing.cast(nn.Conv2d, convolution)
        # Scaling weights instead of pixels saves a tenth of a forward pass on a CPU.
        hidden = torch.relu(norm(functional.conv2d(pixels, first.weight * (1 / 255), first.bias, first.stride)))
        for convolution, norm in layers:
            hidden = torch.relu(norm(convolution(hidden)))
        return hidden.flatten(1)


class VectorTorso(nn.Module):
    """Observations of any shape [B, ...], flattened -> features float32 [B, num_features]."""

    def __init__(self, inputs: int, num_features: int, scale: float) -> None:
        super().__init__()
        # Layer norm: without it CartPole stays at returns of 110 to 180 for thousands of updates.
        self.layers = nn.Sequential(
            nn.Linear(inputs, num_features),
            nn.LayerNorm(num_features),
            nn.ReLU(),
            nn.Linear(num_features, num_features),
            nn.LayerNorm(num_features),
            nn.ReLU(),
        )
        self.num_features = num_features
        self.scale = scale

    def forward(self, observation: Tensor) -> Tensor:
        """Features of a batch of observations."""
        features: Tensor = self.layers(observation.flatten(1).to(torch.float32) * self.scale)
        return features


class Head(nn.Module):
    """Features [B, num_features] -> Q [B, A] = V + A - mean A (Wang et al. 2016, eq. 9).

    The hidden layers of both streams are the halves of one matrix product. Without `agent.dueling` there is no V, and
    A reads both halves: Q = A.
    """

    def __init__(self, num_features: int, width: int, num_actions: int, agent: Agent) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, 2 * width)
        self.norm = nn.LayerNorm(2 * width) if agent.layer_norm else nn.Identity()
        self.value = nn.Linear(width, 1) if agent.dueling else None
        self.advantage = nn.Linear(width if agent.dueling else 2 * width, num_actions)

    def forward(self, features: Tensor) -> Tensor:
        """Q-values of a batch of features."""
        hidden = torch.relu(self.norm(self.hidden(features)))
        if self.value is None:
            q: Tensor = self.advantage(hidden)
            return q
        value_hidden, advantage_hidden = hidden.chunk(2, dim=1)
        value: Tensor = self.value(value_hidden)
        advantage: Tensor = self.advantage(advantage_hidden)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class QNetwork(nn.Module):
    """Observations [B, s, *frame shape] -> Q float32 [B, A]."""

    def __init__(self, torso: ConvTorso | VectorTorso, head: Head) -> None:
        super().__init__()
        self.torso = torso
        self.head = head

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values of a batch of observations as in `FrameSpec`."""
        q: Tensor = self.head(self.torso(observation))
        return q


def make_network(agent: Agent, frame: FrameSpec, num_actions: int, seed: int | None = None) -> QNetwork:
    """Make a Q-network on the CPU.

    nature: convolutions 32 8/4, 64 4/2, 64 3/1 (Mnih et al. 2015), two heads of 512;
    small: convolutions 16 8/4, 32 4/2, two heads of 256; mlp: flattens any input,
    two layers of 128 with layer norm, two heads of 128. uint8 inputs are scaled by 1/255, float32 ones are not.
    Given a seed, the initial weights depend on it alone, and torch's generator keeps its state.

    Raises:
        NetworkError: no actions, convolutions on vectors, or frames too small for the convolutions.
    """
    if num_actions < 1:
        raise NetworkError(f"a Q-network needs at least one action, not {num_actions}")
    with _seeded(seed):
        torso = _make_torso(agent, frame)
        return QNetwork(torso, Head(torso.num_features, HEAD_WIDTH[agent.network], num_actions, agent))


def to_arrays(network: nn.Module) -> dict[str, Float32s]:
    """Return copies of the parameters by name, float32 on the CPU."""
    return {name: np.array(tensor.numpy(force=True)) for name, tensor in network.state_dict().items()}


def load_arrays(network: nn.Module, arrays: Mapping[str, Float32s]) -> None:
    """Copy parameters by name into a network on any device.

    Raises:
        RuntimeError: names or shapes differ from the network's.
    """
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})


def _make_torso(agent: Agent, frame: FrameSpec) -> ConvTorso | VectorTorso:
    name = agent.network
    is_uint8 = frame.dtype == "uint8"
    if name == "mlp":
        return VectorTorso(frame.stack * math.prod(frame.shape), MLP_WIDTH, 1 / 255 if is_uint8 else 1.0)
    if not is_uint8 or len(frame.shape) not in (2, 3):
        raise NetworkError(
            f"network {name} needs uint8 images (H, W) or (C, H, W), not {frame.dtype} {frame.shape}; "
            "use mlp for agent.network"
        )
    layers = CONVOLUTIONS[name]
    height, width = frame.shape[-2:]
    smallest = 1
    for layer in reversed(layers):
        smallest = (smallest - 1) * layer.stride + layer.kernel
    if min(height, width) < smallest:
        raise NetworkError(
            f"network {name} needs frames of at least {smallest}x{smallest}, not {height}x{width}; "
            "raise env.frame_height or env.frame_width, or use mlp for agent.network"
        )
    return ConvTorso(frame.stack * math.prod(frame.shape[:-2]), height, width, layers, agent.layer_norm)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
