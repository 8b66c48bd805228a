"""Options shared by several programs, and the settings that they set."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from apex_zmq.config import loading, paths, sources
from apex_zmq.config.settings import ADDRESSES, Config, Setting, by_name, settings
from apex_zmq.config.sources import Value
from apex_zmq.envs.games import check_env

# Options that set one setting each, with its type, range and help.
TRAIN_FLAGS = {
    "--stage": "env.stages",
    "--num-actors": "run.num_actors",
    "--batch-size": "learner.batch_size",
    "--buffer-size": "replay.capacity",
    "--episodes": "run.episodes",
    "--sync-every": "learner.sync_every",
    "--save-every": "learner.save_every",
    "--learning-rate": "learner.learning_rate",
    "--alpha": "replay.alpha",
    "--beta": "learner.beta",
    "--beta-annealing": "learner.beta_annealing",
    "--max-minutes": "run.max_minutes",
    "--max-decisions": "run.max_decisions",
    "--max-updates": "run.max_updates",
    "--seed": "run.seed",
}
ADDRESS_FLAGS = {f"--{name}": f"addresses.{name}" for name in ADDRESSES}  # each has an environment variable too
INSECURE_FLAG = {"--insecure": "addresses.insecure"}


def path(text: str) -> Path:
    """The type of options that are paths: ~ is expanded, what cannot be a path is refused."""
    try:
        return paths.expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Parser(argparse.ArgumentParser):
    """An argument parser that reports usage errors in one line."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, addressed: bool = True
) -> tuple[argparse.Namespace, Config]:
    """Return the arguments of a program with `add_settings`, and its settings: file < environment < flags < --set.

    addressed: as for `check.validate`.

    Raises:
        ConfigError: as `loading.resolve`; it names the file and line, variable or flag of a bad value.
    """
    arguments = parser.parse_args(argv)
    options = vars(arguments)
    values = [
        *(sources.from_file(arguments.config) if arguments.config is not None else ()),
        *sources.from_environment(name for name in ADDRESS_FLAGS.values() if name in options),
        *(value for value in options.values() if isinstance(value, Value)),
        *arguments.overrides,
    ]
    return arguments, loading.resolve(values, addressed=addressed, check=lambda config: check_env(config.env))


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and `--set`, and list all settings at the end of the help."""
    lines = [
        f"  {setting.name} ({setting.type}; default {_plain(setting.default)})\n      {setting.description}"
        for setting in settings()
    ]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "settings, for --set and config files (seconds in _s, bytes in _bytes):\n" + "\n".join(lines)
    parser.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="YAML file of settings, such as configs/mario-cpu.yaml (default: none)",
    )
    parser.add_argument(
        "--set",
        type=sources.from_set,
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change one setting; may be repeated, overrides config file, environment and other options",
    )


def add_flags(parser: argparse.ArgumentParser, flags: Mapping[str, str]) -> None:
    """Add options that set one setting each, such as `TRAIN_FLAGS`; `parse` reads them."""
    for flag, name in flags.items():
        setting = by_name()[name]
        if setting.type == "bool":
            parser.add_argument(
                flag, dest=name, action="store_const", const=Value(name, True, flag), help=_help(setting)
            )
        else:
            parser.add_argument(
                flag,
                dest=name,
                type=functools.partial(sources.from_text, name, place=flag),
                metavar=_metavar(setting),
                help=_help(setting),
            )


def _help(setting: Setting) -> str:
    notes = [setting.description]
    if setting.name in ADDRESS_FLAGS.values():
        notes.append(f"Environment: {sources.variable_of(setting.name)}.")
    if "[" in setting.type:
        notes.append("Commas separate several.")
    default = setting.default if isinstance(setting.default, tuple) else (setting.default,)
    return f"{' '.join(notes)} Sets {setting.name} (default: {','.join(map(_plain, default))})".replace("%", "%%")


def _metavar(setting: Setting) -> str:
    if named := {"addresses.keys": "DIR", "env.stages": "STAGE"}.get(setting.name):
        return named
    return {"int": "N", "float": "X"}.get(setting.type.split(" | ")[0], "ADDRESS")


def _plain(value: Any) -> str:
    return json.dumps(value).strip('"')


def add_log_format(parser: argparse.ArgumentParser) -> None:
    """Add the format of log lines."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of log lines; json: one object per line with time, level, role, message (default: text)",
    )


def add_role_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a role that is started alone; apex-train chooses addresses and log directory itself."""
    add_settings(parser)
    add_log_format(parser)
    add_flags(parser, ADDRESS_FLAGS | INSECURE_FLAG)
    parser.add_argument(
        "--log-dir",
        type=path,
        metavar="DIR",
        help="directory of log files, DIR/<role>.log, rotated by size (default: none)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the run directory, and the state that training starts from."""
    parser.add_argument(
        "--run-dir", type=path, metavar="DIR", help="run directory (default: checkpoints/<config name>-<time>)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="continue the run in --run-dir (default: the newest run of the config); auto: begin a new run there "
        "if it holds none, so that one command both starts and restarts",
    )
    parser.add_argument(
        "--init-from",
        type=path,
        metavar="CHECKPOINT",
        help="checkpoint file or run directory whose evaluation parameters a new run starts from (default: none)",
    )


def add_checkpoint_options(parser: argparse.ArgumentParser, episodes: int) -> None:
    """Add the options of programs that play a checkpoint with its own settings; episodes: default of the option."""
    parser.add_argument(
        "--checkpoint", type=path, required=True, metavar="PATH", help="checkpoint file, or run directory (its best)"
    )
    parser.add_argument(
        "--episodes", type=int, default=episodes, metavar="N", help=f"episodes to play (default: {episodes})"
    )
    parser.add_argument(
        "--protocol",
        choices=("greedy", "noop", "sticky"),
        default="noop",
        help="greedy: fixed start, always the best action; noop: 0 to 30 random no-op frames first, then a random "
        "action with probability 0.01; sticky: fixed start, the previous action repeated with probability 0.25 "
        "(default: noop)",
    )
    parser.add_argument(
        "--seed", type=int, default=10_000, metavar="N", help="seed of the environments (default: 10000)"
    )


def add_render_option(parser: argparse.ArgumentParser, process: str) -> None:
    """Add the option of a window that shows a lane; process: the one that opens it."""
    parser.add_argument(
        "--render",
        action="store_true",
        help=f"show the last lane of the {process} in a window; closing the window does not stop training",
    )
