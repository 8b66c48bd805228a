from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config

from ..conftest import ROOT
from .conftest import TWO_SHARDS


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def test_every_setting_is_described() -> None:
    described = {setting.name: setting for setting in settings.settings()}
    defaults = leaves(yaml.safe_load(loading.to_yaml(Config())))
    assert described.keys() == defaults.keys()
    for name, setting in described.items():
        assert setting.type
        assert setting.description.endswith(".")
        assert (list(setting.default) if isinstance(setting.default, tuple) else setting.default) == defaults[name]


def test_setting_types_are_human_readable() -> None:
    types = {setting.name: setting.type for setting in settings.settings()}
    assert types["learner.batch_size"] == "int"
    assert types["learner.loss"] == "l2 | huber"
    assert types["run.max_minutes"] == "float | null"
    assert types["env.stages"] == "all | [str, ...]"
    assert types["env.lives"] == "1 | 3"
    assert types["env.actions"] == "RIGHT_ONLY | SIMPLE_MOVEMENT | COMPLEX_MOVEMENT | [[str, ...], ...]"


def test_units_in_names_are_repeated_in_descriptions() -> None:
    for setting in settings.settings():
        for ending, unit in (("_s", "second"), ("_bytes", "byte"), ("_minutes", "minute")):
            assert not setting.name.endswith(ending) or unit in setting.description.lower(), setting.name


def test_null_tolerance_is_derived_from_batch_and_segment() -> None:
    loaded = loading.load(overrides=["replay.samples_per_insert=2", "learner.batch_size=10", "actor.segment_length=5"])
    assert settings.tolerance(loaded) == 4 * (10 + 2 * 5)
    assert settings.tolerance(loading.replace(loaded, {"replay.tolerance": 33.0})) == 33


def test_min_size_per_shard_is_rounded_up() -> None:
    assert settings.min_size_per_shard(loading.load(overrides=[*TWO_SHARDS, "replay.min_size=1001"])) == 501


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().learner.batch_size = 1  # type: ignore[misc]


# Variables that hold a section under another name than the section's.
ALIASES = {"reward": {"terms"}, "learner": {"config"}}


def test_every_setting_is_used() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "apex_zmq").rglob("*.py") if path.name != "config_doc.py")
    for setting in settings.settings():
        *_, section, leaf = setting.name.split(".")
        owners = "|".join({section, *ALIASES.get(section, set())})
        assert re.search(rf"\b_?({owners})\.{leaf}\b(?!\()", sources), f"nothing reads {setting.name}"
