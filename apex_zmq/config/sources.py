"""Sources of settings: files, environment variables, flags and `--set`. Each value holds its source, for errors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from apex_zmq.config.settings import by_name, sections
from apex_zmq.errors import ConfigError

BAD_YAML = (yaml.YAMLError, ValueError, AttributeError)  # the latter two: an impossible date, such as 2026-02-30


class Value(NamedTuple):
    """An unchecked value for a setting.

    name: dotted name of the setting, or of a section whose value is a mapping; empty: the whole tree.
    place: source of the value, for error messages: `--alpha`, `APEX_STATUS`, `x.yaml line 3`, `--set`.
    """

    name: str
    value: Any
    place: str


def from_file(path: Path | str) -> list[Value]:
    """The settings in a YAML file; the place of each is its line.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has no sections.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_bytes())
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            return list(_leaves(loader, root, "", path))
        content = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; see configs/ for ready ones") from None
    except BAD_YAML as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is not None:
        raise ConfigError(f"{path} must contain sections (run, env, agent, ...), not a {type(content).__name__}")
    return []


def _leaves(loader: yaml.SafeLoader, section: yaml.MappingNode, prefix: str, path: Path | str) -> Iterator[Value]:
    loader.flatten_mapping(section)  # YAML's merge keys
    for key, node in section.value:
        name = f"{prefix}{loader.construct_document(key)}"
        if name in sections() and isinstance(node, yaml.MappingNode):
            yield from _leaves(loader, node, f"{name}.", path)
        else:
            yield Value(name, loader.construct_document(node), f"{path} line {key.start_mark.line + 1}")


def from_environment(names: Iterable[str], environ: Mapping[str, str] = os.environ) -> list[Value]:
    """Addresses from environment variables such as APEX_STATUS; an empty variable counts as unset.

    names: settings to look for, such as addresses.status.
    """
    variables = {name: variable_of(name) for name in names}
    return [from_text(name, environ[each], each) for name, each in variables.items() if environ.get(each)]


def variable_of(name: str) -> str:
    """Environment variable of an address: APEX_STATUS for addresses.status."""
    return f"APEX_{name.removeprefix('addresses.').upper()}"


def from_text(name: str, text: str, place: str) -> Value:
    """Parse the value of a flag or an environment variable.

    Addresses and stages are literal; commas separate several. Other values are YAML, as with `--set`.

    Raises:
        ConfigError: not YAML.
    """
    if name.startswith("addresses.") or name == "env.stages":
        listed = "," in text or (isinstance(by_name()[name].default, tuple) and text != "all")  # the whole game
        return Value(name, text.split(",") if listed else text, place)
    try:
        return Value(name, yaml.safe_load(text), place)
    except BAD_YAML:
        raise ConfigError(f"{place}: {text} is not valid YAML") from None


def from_set(text: str) -> Value:
    """Parse the argument of `--set`: section.key=value, the value in YAML.

    Raises:
        ConfigError: no name, no value, or a value that is not YAML.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise ConfigError(f"--set: {text} is not an assignment; write section.key=value")
    try:
        return Value(name, yaml.safe_load(value), "--set")
    except BAD_YAML:
        raise ConfigError(f"--set: {text}: the value is not valid YAML") from None
