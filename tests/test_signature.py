from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import FrameSpec

CARTPOLE = Path(__file__).parents[1] / "configs" / "cartpole.yaml"
FREE = {"env.emulator": "nes-py", "env.stages": ["8-4"]}  # actors may differ in these
MEANINGFUL = [
    setting.name
    for setting in settings.settings()
    if setting.name not in FREE and (setting.name.startswith("env.") or setting.name in ("agent.n_step", "agent.gamma"))
]
OTHERS = {
    "run.seed": 7,
    "agent.network": "small",
    "actor.lanes": 3,
    "actor.epsilon": 0.2,
    "replay.alpha": 0.1,
    "learner.loss": "l2",
    "learner.batch_size": 32,
    "telemetry.log_level": "debug",
    "addresses.batches": "tcp://127.0.0.1:9",
}
CHOICES: dict[str, Any] = {
    "env.id": "CartPole-v1",
    "env.actions": "RIGHT_ONLY",
    "env.lives": 3,
    "env.hud": "mask",
    "env.sticky": 0.25,
    "env.stall_end": "failure",
    "env.reward.preset": "gym-super-mario-bros-7.4",
    "env.reward.score": 0.01,
    "env.reward.coins": 0.5,
    "env.reward.power_up": 1.0,
}


def another(name: str) -> Any:
    """A valid value of a setting that is not its default."""
    if name in CHOICES:
        return CHOICES[name]
    default = typing.cast("int | float | None", {each.name: each.default for each in settings.settings()}[name])
    if isinstance(default, float):
        return default * 0.5
    return 17 if default is None else default + 1


@pytest.mark.parametrize("path", [None, CARTPOLE], ids=["mario", "cartpole"])
def test_signature_is_equal_in_another_process(path: Path | None) -> None:
    program = (
        "import sys; from apex_zmq import signature; from apex_zmq.config import loading; "
        "loaded = loading.load(*sys.argv[1:]); "
        "print(signature.experience_signature(loaded), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, *([str(path)] if path else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [experience_signature(loading.load(path)), "False"]


def test_signature_is_16_hex_digits_and_survives_yaml(tmp_path: Path) -> None:
    signature = experience_signature(Config())
    assert len(bytes.fromhex(signature)) == 8
    (tmp_path / "resolved.yaml").write_text(loading.to_yaml(Config()))
    assert experience_signature(loading.load(tmp_path / "resolved.yaml")) == signature


@pytest.mark.parametrize("name", MEANINGFUL)
def test_settings_that_define_transitions_change_the_signature(name: str) -> None:
    changed = loading.replace(Config(), {name: another(name)})
    assert experience_signature(changed) != experience_signature(Config())


def test_whole_game_and_lost_levels_change_the_signature() -> None:
    whole = loading.replace(Config(), {"env.stages": "all"})
    assert experience_signature(whole) != experience_signature(Config())
    lost_levels = loading.replace(Config(), {"env.id": "SuperMarioBros2"})
    assert experience_signature(lost_levels) != experience_signature(Config())


@pytest.mark.parametrize("changes", [FREE, OTHERS], ids=["emulator and stages", "other sections"])
def test_settings_that_peers_may_vary_keep_the_signature(changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        changed = loading.replace(Config(), {name: value})
        assert changed != Config()
        assert experience_signature(changed) == experience_signature(Config()), name


def test_rules_and_rom_change_the_signature_of_mario_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mario, cartpole = Config(), loading.load(CARTPOLE)
    before = experience_signature(mario), experience_signature(cartpole)
    for name, value in (("RULES_VERSION", 10**6), ("ROM_SHA256", {"SuperMarioBros": "another game"})):
        with monkeypatch.context() as patched:
            patched.setattr(f"apex_zmq.signature.{name}", value)
            assert experience_signature(mario) != before[0]
            assert experience_signature(cartpole) == before[1]


def test_network_signature_covers_only_names_shapes_and_dtypes() -> None:
    from apex_zmq.agent.networks import make_network, to_arrays

    frame = FrameSpec((20, 20), "uint8", 2)
    arrays = to_arrays(make_network(settings.Agent("small"), frame, 3, seed=0))
    signature = network_signature(arrays)
    assert network_signature(to_arrays(make_network(settings.Agent("small"), frame, 3, seed=1))) == signature
    assert network_signature(to_arrays(make_network(settings.Agent("small"), frame, 4, seed=0))) != signature
    assert (
        network_signature(to_arrays(make_network(settings.Agent("small"), FrameSpec((20, 20), "uint8", 3), 3)))
        != signature
    )
    assert network_signature(to_arrays(make_network(settings.Agent("mlp"), frame, 3))) != signature

    first, *rest = arrays
    assert network_signature({"renamed" if name == first else name: arrays[name] for name in arrays}) != signature
    assert network_signature({name: arrays[name] for name in rest}) != signature
    assert network_signature(arrays | {first: arrays[first].astype(np.float64)}) != signature
    assert network_signature(arrays | {first: arrays[first][None]}) != signature
