"""Settings from YAML files, `section.key=value` overrides and the environment; an unknown key is an error."""

from __future__ import annotations

import difflib
import functools
import json
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from apex_zmq.config.check import validate
from apex_zmq.config.settings import ADDRESSES, Config, Section, to_tree
from apex_zmq.errors import ConfigError

BAD_YAML = (yaml.YAMLError, ValueError, AttributeError)  # the latter two of a date that is none, such as 2026-02-30


def load(path: Path | str | None = None, overrides: Iterable[str] = (), *, addressed: bool = True) -> Config:
    """Read a YAML file and apply `section.key=value` overrides on top, then validate.

    addressed: as for `check.validate`.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, impossible value.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read config {path}: {error.strerror}; configs/ holds ready ones") from None
        except BAD_YAML as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, dict | None):
            raise ConfigError(f"{path} must hold sections (run, env, agent, ...), not a {type(loaded).__name__}")
        tree = loaded or {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write section.key=value")
        *parents, leaf = key.strip().split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {parent} is not a section")
            node = child
        try:
            node[leaf] = yaml.safe_load(value)
        except BAD_YAML:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    return from_tree(tree, str(path) if path is not None else "settings", addressed=addressed)


def from_tree(tree: Mapping[str, Any], source: str, *, addressed: bool = True) -> Config:
    """Convert and validate a tree of plain values; `source` names it in errors.

    addressed: as for `check.validate`.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    _refuse_unknown_keys(Config, tree, "", source)
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise ConfigError(f"{source}: {where.rstrip('`') or 'settings'}: {what}; see --help for its type") from None
    validate(config, addressed=addressed)
    return config


_hints = functools.cache(typing.get_type_hints)


def _refuse_unknown_keys(section: type[Section], tree: Mapping[str, Any], prefix: str, source: str) -> None:
    hints = _hints(section)
    for key, value in tree.items():
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise ConfigError(f"{source}: unknown setting {prefix}{key}; {remedy}")
        hint = hints[key]
        if isinstance(hint, type) and issubclass(hint, Section) and isinstance(value, Mapping):
            _refuse_unknown_keys(hint, value, f"{prefix}{key}.", source)


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with dotted settings changed, validated again.

    Raises:
        ConfigError: as `from_tree`.
    """
    tree = to_tree(config)
    for name, value in changes.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return from_tree(tree, "options")


def from_environment(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Overrides from APEX_EXPERIENCE, APEX_PRIORITIES, APEX_BATCHES, APEX_PARAMETERS, APEX_STATUS, APEX_KEYS."""
    overrides = []
    for field in ADDRESSES:
        value = environ.get(f"APEX_{field.upper()}")
        if value:
            overrides.append(address_override(field, value))
    return overrides


def address_override(field: str, value: str) -> str:
    """`--set` form of an address given by flag or environment; commas separate shards, and ranks."""
    listed = field in ("experience", "priorities") or (field == "batches" and "," in value)
    return f"addresses.{field}={json.dumps(value.split(',') if listed else value)}"  # JSON is YAML
