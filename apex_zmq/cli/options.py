"""Arguments of the programs under `bin/`, and the settings that they stand for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from apex_zmq import __version__
from apex_zmq.config import loading, settings
from apex_zmq.config.settings import ADDRESSES

# Options of apex-train that stand for one setting each: flag, setting, type.
TRAIN_FLAGS: tuple[tuple[str, str, type], ...] = (
    ("--num-actors", "run.num_actors", int),
    ("--batch-size", "learner.batch_size", int),
    ("--buffer-size", "replay.capacity", int),
    ("--episodes", "run.episodes", int),
    ("--sync-every", "learner.sync_every", int),
    ("--save-every", "learner.save_every", int),
    ("--learning-rate", "learner.learning_rate", float),
    ("--alpha", "replay.alpha", float),
    ("--beta", "learner.beta", float),
    ("--beta-annealing", "learner.beta_annealing", float),
    ("--max-minutes", "run.max_minutes", float),
    ("--max-decisions", "run.max_decisions", int),
    ("--max-updates", "run.max_updates", int),
    ("--seed", "run.seed", int),
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def settings_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Options for settings, and the settings below them."""
    lines = [
        f"  {setting.name} ({setting.type}; default {_plain(setting.default)})\n      {setting.description}"
        for setting in settings.settings()
    ]
    parser = Parser(
        program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings, for --set and config files (seconds in _s, bytes in _bytes):\n" + "\n".join(lines),
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file of settings, such as configs/mario-cpu.yaml (default: none)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change one setting; may be repeated, wins over all else",
    )
    return parser


def role_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Options that all roles share."""
    parser = settings_parser(program, description)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="text (default), or json: one object a line with time, level, role, message",
    )
    return parser


def checkpoint_parser(program: str, description: str, episodes: int) -> argparse.ArgumentParser:
    """Options of the programs that play a checkpoint, which brings its settings along."""
    parser = Parser(program, description=description)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help="checkpoint file, or run directory (its best)"
    )
    parser.add_argument(
        "--episodes", type=int, default=episodes, metavar="N", help=f"episodes to play (default: {episodes})"
    )
    parser.add_argument(
        "--protocol",
        choices=("greedy", "noop", "sticky"),
        default="noop",
        help="greedy: fixed start, best action always; noop: 0 to 30 random no-op frames first and a random action "
        "with probability 0.01 (default); sticky: fixed start, and the action before again with probability 0.25",
    )
    parser.add_argument("--seed", type=int, default=10_000, metavar="S", help="seed of the games (default: 10000)")
    return parser


def add_render_option(parser: argparse.ArgumentParser, whose: str) -> None:
    """A window on somebody's lane."""
    parser.add_argument(
        "--render",
        action="store_true",
        help=f"show the last lane of the {whose} in a window; closing it stops nothing else",
    )


def _plain(value: Any) -> str:
    return json.dumps(value).strip('"')


def add_role_options(parser: argparse.ArgumentParser) -> None:
    """Options of a role that is started alone; apex-train chooses addresses and log directory itself."""
    add_address_options(parser)
    add_insecure_option(parser)
    parser.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="log to DIR/<role>.log too, in rotated files (default: none)"
    )


def add_address_options(parser: argparse.ArgumentParser, names: Iterable[str] = ADDRESSES) -> None:
    """An option for each of some addresses."""
    described = {setting.name: setting for setting in settings.settings()}
    for name in names:
        setting = described[f"addresses.{name}"]
        many, default = ", commas between ranks" if name == "batches" else "", setting.default or "none"
        if not isinstance(default, str):
            many, default = ", commas between shards", ",".join(default)
        parser.add_argument(
            f"--{name}",
            metavar="DIR" if name == "keys" else "ADDRESS",
            help=f"{setting.description} Also: APEX_{name.upper()}{many} (default: {default})",
        )


def add_insecure_option(parser: argparse.ArgumentParser) -> None:
    """Doors that open without keys."""
    parser.add_argument(
        "--insecure", action="store_true", help="allow binding to addresses that other hosts can reach, without keys"
    )


def address_overrides(arguments: argparse.Namespace) -> list[str]:
    """What `add_address_options` and `add_insecure_option` set: flags win over the environment."""
    flags = [(name, getattr(arguments, name, None)) for name in ADDRESSES]
    return [
        *loading.from_environment(),
        *(loading.address_override(name, value) for name, value in flags if value),
        *(["addresses.insecure=true"] if getattr(arguments, "insecure", False) else []),
    ]


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where a run goes, and where it starts."""
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="run directory (default: checkpoints/<config name>-<time>)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="go on with the run in --run-dir (default: the config's newest run); auto: where --run-dir holds none "
        "yet, begin one, so that one command serves to start and to start again",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="CHECKPOINT",
        help="start from what an evaluation of this checkpoint file or run directory plays (default: none)",
    )


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Options of apex-train that stand for one setting each."""
    defaults = {setting.name: setting for setting in settings.settings()}
    for flag, name, kind in TRAIN_FLAGS:
        setting = defaults[name]
        default = "never" if setting.default is None else setting.default
        parser.add_argument(
            flag,
            type=kind,
            metavar="N" if kind is int else "X",
            help=f"{setting.description} Sets {name} (default: the config's; without one {default})",
        )


def train_overrides(arguments: argparse.Namespace) -> list[str]:
    """What `add_train_flags` sets."""
    given = ((name, getattr(arguments, flag[2:].replace("-", "_"))) for flag, name, _ in TRAIN_FLAGS)
    return [f"{name}={value}" for name, value in given if value is not None]
