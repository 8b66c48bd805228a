"""Generate docs/CONFIGURATION.md from the typed settings: python -m apex_zmq.cli.config_doc > docs/CONFIGURATION.md."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apex_zmq.cli.options import ADDRESS_FLAGS, INSECURE_FLAG, TRAIN_FLAGS
from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config, Setting
from apex_zmq.config.sources import variable_of

CONFIGS = Path(__file__).parents[2] / "configs"
INTRODUCTION = """\
# Configuration

Written by `make docs` from `apex_zmq/config/settings.py`; a test keeps it current.

Settings form one tree of sections. A config file names the settings it changes; all other settings keep their defaults.
An unknown key is an error. The resolved settings of a run are stored in its checkpoints and on TensorBoard's text page.

If a setting is given more than once, the last of these wins: config file, environment variable, flag, `--set`. An error
names the source of the value: file and line, variable, flag, or `--set`. A key given twice in a file is an error.
Numbers may be written `1e6` and `1_000_000`; a section without keys is empty.

```sh
bin/apex-train --config configs/mario-cpu.yaml --batch-size 128 --set env.stages=[1-1,1-2] --set run.episodes=null
```

Times are in seconds where a name ends in `_s`, sizes in bytes where it ends in `_bytes`. A decision is one step of an
agent in one lane: `env.frame_skip` emulator frames. An update is one gradient step. A flag in the last column is an
option of `bin/apex-train` that sets the same value, unless stated otherwise.
"""
READY = """\
## The ready configs

The settings that each file under `configs/` changes.
"""


def document() -> str:
    """The whole text of docs/CONFIGURATION.md."""
    by_section: defaultdict[str, list[Setting]] = defaultdict(list)
    for setting in settings.settings():
        by_section[setting.name.rpartition(".")[0]].append(setting)
    parts = [INTRODUCTION]
    for name, members in by_section.items():
        rows = [
            (
                f"`{setting.name.removeprefix(name + '.')}`",
                _cell(setting.type),
                setting.range,
                f"`{_cell(json.dumps(setting.default))}`",
                " ".join([_cell(setting.description), *_ways_to_set(setting.name)]),
            )
            for setting in members
        ]
        summary = str(settings.sections()[name].__doc__).partition("\n")[0]
        table = _table(("setting", "type", "range", "default", "meaning"), rows)
        parts.append(f"## {name}\n\n{summary}\n\n{table}")
    return "\n".join([*parts, READY, _ready_configs()])


def _ready_configs() -> str:
    """The settings in which the ready configs differ from the defaults."""
    paths = sorted(CONFIGS.glob("*.yaml"))
    values = [_values(loading.load(path)) for path in paths]
    rows = []
    for setting in settings.settings():
        default = json.dumps(setting.default)
        found = [value[setting.name] for value in values]
        if any(value != default for value in found):
            rows.append((f"`{setting.name}`", *("" if value == default else f"`{_cell(value)}`" for value in found)))
    return _table(("setting", *(path.stem for path in paths)), rows)


def _values(config: Config) -> dict[str, str]:
    """Every setting by dotted name, as JSON."""
    found = {}
    for setting in settings.settings():
        node: Any = settings.to_tree(config)
        for part in setting.name.split("."):
            node = node[part]
        found[setting.name] = json.dumps(node)
    return found


def _ways_to_set(name: str) -> list[str]:
    """Options and environment variable of a setting."""
    ways = [f"`{flag}`" for flag, setting in TRAIN_FLAGS.items() if setting == name]
    ways += [f"`{flag}` of each role" for flag, setting in (ADDRESS_FLAGS | INSECURE_FLAG).items() if setting == name]
    if name in ADDRESS_FLAGS.values():
        ways.append(f"`{variable_of(name)}`")
    return ["; ".join(ways)] if ways else []


def _cell(text: str) -> str:
    return re.sub(r"([|<])", r"\\\1", text)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = tuple(header)
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(document(), end="")
