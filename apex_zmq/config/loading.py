"""Converts values of several sources to the typed tree of settings; an unknown setting is an error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from apex_zmq.config import paths, sources
from apex_zmq.config.check import SettingError, validate
from apex_zmq.config.settings import Config, Section, Setting, by_name, sections, to_tree
from apex_zmq.config.sources import Value
from apex_zmq.errors import ConfigError

Check = Callable[[Config], None]
DEFAULTS = Config()


def resolve(
    values: Iterable[Value], base: Config = DEFAULTS, *, addressed: bool = True, check: Check = lambda _: None
) -> Config:
    """Return `base` changed by values, checked across settings; the last value for a setting wins.

    addressed: as for `check.validate`. check: a further check, which raises SettingError.

    Raises:
        ConfigError: unknown setting, wrong type, value out of range, or settings that contradict each other. It names
            the source of the value.
    """
    newest = {each.name: each for value in values for each in _per_setting(value)}
    config: Section = base
    for value in newest.values():
        config = _replaced(config, value.name.split("."), _converted(value))
    assert isinstance(config, Config)
    try:
        validate(config, addressed=addressed)
        check(config)
    except SettingError as error:
        places = [f"{name} from {newest[name].place}" for name in error.settings if name in newest]
        raise ConfigError(f"{error} ({', '.join(places)})" if places else str(error)) from None
    return config


def load(path: Path | str | None = None, overrides: Iterable[str] = (), *, addressed: bool = True) -> Config:
    """Return the settings of a YAML file, changed by `section.key=value` overrides.

    Raises:
        ConfigError: as `sources.from_file`, `sources.from_set` and `resolve`.
    """
    values = [] if path is None else sources.from_file(path)
    return resolve([*values, *map(sources.from_set, overrides)], addressed=addressed)


def from_tree(tree: Mapping[str, Any], source: str) -> Config:
    """Return the settings of a tree from `settings.to_tree`; `source` names it in errors.

    Raises:
        ConfigError: as `resolve`.
    """
    return resolve([Value("", tree, source)])


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy with settings changed by dotted name, and check it.

    Raises:
        ConfigError: as `resolve`.
    """
    return resolve([Value(name, value, "settings") for name, value in changes.items()], config)


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


def _per_setting(value: Value) -> Iterator[Value]:
    """Yield one value per setting: split the mapping of a section."""
    if value.name in by_name():
        yield value
    elif value.name not in sections():
        raise ConfigError(f"{value.place}: unknown setting {value.name}; {_suggestion(value.name)}")
    elif isinstance(value.value, Mapping):
        for key, each in value.value.items():
            name = f"{value.name}.{key}" if value.name else str(key)
            yield from _per_setting(Value(name, each, value.place))
    else:
        first = next(name for name in by_name() if name.startswith(f"{value.name}."))
        raise ConfigError(
            f"{value.place}: {value.name} is a section; wanted its settings, such as {first}, got {_shown(value.value)}"
        )


def _suggestion(name: str) -> str:
    """The remedy for an unknown setting: one of that key in another section, a similar name, or all of its section."""
    section, _, key = name.rpartition(".")
    if same_key := [each for each in by_name() if each.endswith(f".{key}")]:
        return f"did you mean {' or '.join(same_key)}?"
    if section not in sections():
        section, key = "", name
    prefix = f"{section}." if section else ""
    known = [each.removeprefix(prefix) for each in (*sections(), *by_name()) if each.startswith(prefix)]
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {prefix}{close[0]}?"
    return f"known: {', '.join(sections()[section].__struct_fields__)}"


def _converted(value: Value) -> Any:
    """The value in the type of its setting."""
    setting = by_name()[value.name]
    if value.name in paths.SETTINGS and isinstance(value.value, str):
        try:
            return str(paths.expanded(value.value))
        except ValueError as error:
            raise ConfigError(f"{value.place}: {value.name}: {error}") from None
    try:
        return msgspec.convert(value.value, setting.hint, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{value.place}: {value.name}: wanted {_wanted(setting)}, got {_shown(value.value)}"
            f"{_list_instead(setting, value.value)}"
        ) from None


def _wanted(setting: Setting) -> str:
    """Type and range in words, such as: int >= 1 and <= 60; float > 0 or null; l2 or huber."""
    *options, last = setting.type.split(" | ")
    if last != "null":
        options.append(last)
    bounds = f" {setting.range.replace(', ', ' and ')}" if setting.range else ""
    return f"{' or '.join(options)}{bounds}{' or null' if last == 'null' else ''}"


def _list_instead(setting: Setting, value: Any) -> str:
    """The remedy if a list is wanted and the value is one element of it; else empty."""
    try:
        msgspec.convert([value], setting.hint, strict=False)
    except msgspec.ValidationError:
        return ""
    return f"; write a list such as {yaml.safe_dump([value], default_flow_style=True).strip()}"


def _shown(value: Any) -> str:
    return json.dumps(value, default=lambda other: f"{type(other).__name__} {other}")  # YAML has dates


def _replaced(section: Section, path: Sequence[str], value: Any) -> Section:
    """A copy of a section with the setting at `path` below it changed."""
    key, *rest = path
    changed = _replaced(getattr(section, key), rest, value) if rest else value
    return msgspec.structs.replace(section, **{key: changed})
