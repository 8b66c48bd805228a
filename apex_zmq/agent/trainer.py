"""Gradient steps of Ape-X DQN (Horgan et al. 2018, arXiv 1803.00933) without sockets: networks, optimizer, counters."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from apex_zmq.agent.importance import beta_at
from apex_zmq.agent.losses import double_q_target, of_actions, split_windows, td_loss
from apex_zmq.agent.networks import make_network, to_arrays
from apex_zmq.agent.optimizers import make_optimizer, optimizer_from_tensors, optimizer_to_tensors
from apex_zmq.agent.ranks import ALONE, Ranks
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import EnvSpec
from apex_zmq.errors import ConfigError
from apex_zmq.types import Float32s, Sample

log = logging.getLogger(__name__)

AVERAGE_POWER = 10  # eta of polynomial-decay averaging, over about the last tenth of all steps


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of one gradient step.

    td_error: float32 [B], |TD| of each row before the step; None: the step was skipped.
    metrics: numbers by TensorBoard tag; empty if skipped.
    reason: cause of the skip; empty if not skipped.
    hopeless: bool [B], rows whose squared TD error is not finite; [0] if not skipped.
    """

    td_error: Float32s | None
    metrics: dict[str, float]
    reason: str = ""
    hopeless: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the torch device of `learner.device` for one rank of a host.

    Raises:
        ConfigError: the device is cuda and torch finds no GPU, or the host has fewer GPUs than ranks.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("learner.device is cuda and torch finds no GPU; set learner.device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(f"no GPU for local rank {local_rank}; start torchrun with --nproc-per-node {count} at most")
    return torch.device("cuda", local_rank)


class Trainer:
    """Online and target network, and the optimizer.

    ranks: ranks of the learner; each steps on its own rows, and parameters are equal on all.
    updates: number of gradient steps.
    average: averaged online parameters; None without `learner.average_updates`. The average has polynomial decay
        (Shamir and Zhang 2013, arXiv 1212.1824, sec. 4) over about the last tenth of all steps, and exponential decay
        over `average_updates` steps once that is shorter (Polyak and Juditsky 1992; in deep networks: Izmailov et al.
        2018, arXiv 1803.05407).
    """

    def __init__(self, config: Config, spec: EnvSpec, ranks: Ranks = ALONE) -> None:
        learner = config.learner
        self.device = choose_device(learner.device, ranks.local_rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # default device, of pinned memory too
        self.updates = 0
        self._config = learner
        self._stack = spec.frame.stack
        self.online = make_network(config.agent, spec.frame, spec.num_actions, config.run.seed).to(self.device)
        self._ranks = ranks
        self._parallel = ranks.parallel(self.online)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.average = copy.deepcopy(self.target) if learner.average_updates is not None else None
        self._optimizer = make_optimizer(learner, self.online.parameters())

    @property
    def beta(self) -> float:
        """Importance-sampling exponent of the next step, in [0, 1]."""
        return beta_at(self._config.beta, self._config.beta_annealing, self.updates)

    @property
    def learning_rate(self) -> float:
        """Step size of the next step (inverse-time decay: Robbins and Monro 1951)."""
        config = self._config
        if config.learning_rate_decay is None:
            return config.learning_rate
        return config.learning_rate / (1 + self.updates / config.learning_rate_decay)

    def step(self, windows: npt.NDArray[Any], sample: Sample, weights: Float32s) -> StepResult:
        """Take one gradient step (Horgan et al. 2018, algorithm 2), on the rows of all ranks together.

        Args:
            windows: uint8 or float32 [B, W, *frame shape], decoded frames.
            sample: the transitions of the same rows.
            weights: float32 [B], importance weights; 0 excludes a row.

        Returns:
            The result. If loss, gradient or parameters of any rank are not finite, all ranks skip the step.

        Raises:
            RankLostError: another rank has ended.
        """
        config, put, rows = self._config, self._to_device, sample.transitions
        obs, next_obs = split_windows(put(windows), put(rows["steps"].astype(np.int64)), self._stack)
        with torch.no_grad():
            next_q = self.target(next_obs)
            selector_q = self.online(next_obs) if config.double else next_q
            reward, discount = put(rows["reward"].astype(np.float32)), put(rows["discount"].astype(np.float32))
            target = double_q_target(reward, discount, next_q, selector_q)
        q = self._parallel(obs)
        td_error = target - of_actions(q, put(rows["action"].astype(np.int64)))
        loss = td_loss(td_error, put(weights), config.loss)
        td_error = td_error.detach()
        self._optimizer.zero_grad(set_to_none=True)
        self._ranks.backward(loss)
        grad_norm = nn.utils.clip_grad_norm_(self.online.parameters(), config.max_grad_norm)
        loss_value, norm_value = float(self._ranks.mean(loss.detach())), float(grad_norm)
        if not (np.isfinite(loss_value) and np.isfinite(norm_value)):
            return self._skip(td_error, f"loss {loss_value:g}, gradient norm {norm_value:g}")
        metrics = {
            "train/loss": loss_value,
            "train/q_mean": float(q.detach().mean()),
            "train/td_error_mean": float(td_error.abs().mean()),
            "train/grad_norm": norm_value,
            "train/learning_rate": self.learning_rate,
            "train/beta": self.beta,
        }
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        self.updates += 1
        if self.average is not None and config.average_updates is not None:
            share = max(1 / config.average_updates, AVERAGE_POWER / (self.updates + AVERAGE_POWER - 1))
            with torch.no_grad():  # else autograd keeps a graph of every step
                torch._foreach_lerp_(list(self.average.parameters()), list(self.online.parameters()), share)
        if self.updates % config.target_period == 0:
            self.target.load_state_dict(self.online.state_dict())
        return StepResult(td_error.abs().cpu().numpy(), metrics)

    def _skip(self, td_error: torch.Tensor, reason: str) -> StepResult:
        """Return the result of a skipped step; no row is hopeless if parameters are not finite."""
        hopeless = ~torch.isfinite(td_error.square())
        if not self.finite():
            hopeless[:] = False
            reason = f"parameters that are not finite: {reason}"
        return StepResult(None, {}, reason, hopeless.cpu().numpy())

    def finite(self) -> bool:
        """Return whether all parameters of the online, target and averaged networks are finite."""
        networks = (network for network in (self.online, self.target, self.average) if network is not None)
        return all(bool(torch.isfinite(each).all()) for network in networks for each in network.parameters())

    def _to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return copies of the online network's parameters by name."""
        return to_arrays(self.online)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return all tensors that a resumed run needs, by group as in `Checkpoint`; networks' are not copied."""
        return {
            "online": dict(self.online.state_dict()),
            "target": dict(self.target.state_dict()),
            "average": {} if self.average is None else dict(self.average.state_dict()),
            "optimizer": optimizer_to_tensors(self._optimizer, self.online),
            "random": {"torch": torch.get_rng_state()},
        }

    def restore(self, state: dict[str, dict[str, torch.Tensor]], updates: int) -> None:
        """Load a `state` saved after `updates` gradient steps.

        Raises:
            CheckpointError: the optimizer state is of another optimizer or network.
            RuntimeError: the parameters are of another network.
        """
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        if self.average is not None:
            self.average.load_state_dict(state["average"] or state["online"])
        optimizer_from_tensors(self._optimizer, self.online, state["optimizer"])
        torch.set_rng_state(state["random"]["torch"])
        self.updates = updates

    def initialize(self, parameters: dict[str, torch.Tensor]) -> None:
        """Load the same parameters, by name, into all networks."""
        for network in (self.online, self.target, self.average):
            if network is not None:
                network.load_state_dict(parameters)
