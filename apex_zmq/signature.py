"""Signatures by which peers verify that they use compatible settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

from apex_zmq.config import settings
from apex_zmq.envs import games
from apex_zmq.envs.emulators import ROM_SHA256
from apex_zmq.envs.mario import RULES_VERSION


def experience_signature(config: settings.Config) -> str:
    """Return 16 hex digits: the hash of the settings that define the meaning of a transition.

    It depends on the config alone, so that a replay host needs no emulator. The emulator and the stages are excluded,
    because actors of one run may differ in them; except `stages: all`, which changes the meaning of an episode.
    """
    env = settings.to_tree(config.env)
    del env["emulator"]
    if env["stages"] != "all":
        del env["stages"]
    meaning: dict[str, Any] = {"env": env, "n_step": config.agent.n_step, "gamma": config.agent.gamma}
    if config.env.id in games.WORLDS:
        meaning |= {"rules": RULES_VERSION, "rom": ROM_SHA256[config.env.id]}
    return _digest(meaning)


def network_signature(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return 16 hex digits: the hash of the names, shapes and dtypes of a network's parameters."""
    return _digest([[name, list(array.shape), str(array.dtype)] for name, array in arrays.items()])


def _digest(meaning: Mapping[str, Any] | Iterable[Any]) -> str:
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
