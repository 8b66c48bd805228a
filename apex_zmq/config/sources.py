"""Sources of settings: files, environment variables, flags and `--set`. Each value holds its source, for errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from apex_zmq.config.settings import by_name, sections
from apex_zmq.errors import ConfigError

BAD_YAML = (yaml.YAMLError, ValueError)  # the latter: bytes that are no text


class _DuplicateKeyError(Exception):
    """A key that a mapping holds twice; lines counted from 1."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(f"{key} is given twice; keep one")
        self.key, self.first, self.second = key, first, second


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them, and without duplicate keys.

    `1e6` is 1,000,000, also for counts; `1_000_000` too; `010` is ten. YAML 1.1 has no `1e6`, reads `010` as eight
    and `1:30` as ninety, and turns dates into objects.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the class attribute of the base class, by the first character)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """An int, or a float that is no whole number or written with a point."""
        text = str(node.value).replace("_", "").lower()
        if _INT.match(text):
            return int(text)
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        return int(value) if "e" in text and "." not in text and value.is_integer() else value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As of the base class.

        Raises:
            _DuplicateKeyError: a key is given twice.
        """
        check_keys(node)
        return super().construct_mapping(node, deep)


_INT = re.compile(r"[-+]?[0-9]+$")
_NUMBER = re.compile(
    r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("!number", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("!number", _Loader.construct_number)


def check_keys(mapping: yaml.MappingNode) -> None:
    """Check that a mapping has each key once; keys that merge keys bring in may be overridden.

    Raises:
        _DuplicateKeyError: a key is given twice.
    """
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines and name != "<<":
            raise _DuplicateKeyError(name, lines[name], line)
        lines[name] = line


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
        ConfigError: the file cannot be read, is not YAML, has no sections, or a key twice.
    """
    try:
        loader = _Loader(Path(path).read_bytes())
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            return list(_leaves(loader, root, "", path))
        content = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; see configs/ for ready ones") from None
    except _DuplicateKeyError as error:
        lines = f"lines {error.first} and {error.second}"
        raise ConfigError(f"{path} {lines} both give {error.key}; keep one") from None
    except BAD_YAML as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is not None:
        raise ConfigError(f"{path} must contain sections (run, env, agent, ...), not a {type(content).__name__}")
    return []


def _leaves(loader: _Loader, section: yaml.MappingNode, prefix: str, path: Path | str) -> Iterator[Value]:
    check_keys(section)
    loader.flatten_mapping(section)  # YAML's merge keys
    for key, node in section.value:
        name = f"{prefix}{loader.construct_document(key)}"
        if name in sections() and isinstance(node, yaml.MappingNode):
            yield from _leaves(loader, node, f"{name}.", path)
        elif name in sections() and node.tag == "tag:yaml.org,2002:null":
            continue  # all its keys are commented out
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
    return Value(name, _parse(text, f"{place}: {text}"), place)


def from_set(text: str) -> Value:
    """Parse the argument of `--set`: section.key=value, the value in YAML.

    Raises:
        ConfigError: no name, no value, or a value that is not YAML.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise ConfigError(f"--set: {text} is not an assignment; write section.key=value")
    return Value(name, _parse(value, f"--set: {text}"), "--set")


def _parse(text: str, place: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except _DuplicateKeyError as error:
        raise ConfigError(f"{place}: {error}") from None
    except BAD_YAML:
        raise ConfigError(f"{place}: the value is not valid YAML") from None
