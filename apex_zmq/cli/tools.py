"""Programs under `bin/` that no run needs: they play checkpoints, make keys, and look at hosts and runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apex_zmq import __version__
from apex_zmq.cli import options, program
from apex_zmq.config.check import check_address, validate
from apex_zmq.config.settings import Config
from apex_zmq.errors import INSTALL, ConfigError, UserError


def evaluate(argv: Sequence[str] | None = None) -> int:
    """bin/apex-eval."""
    parser = options.checkpoint_parser("apex-eval", "Plays a checkpoint and reports how well.", episodes=10)
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="write what was played to FILE.mp4 or FILE.gif (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    parser.add_argument(
        "--emulator", choices=("fceumm", "nes-py"), help="for Mario's games (default: what its run was set to)"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="go on, until Ctrl-C, with what the run of this run directory publishes; the best becomes its "
        "best-eval.safetensors",
    )
    parser.add_argument(
        "--every", type=int, metavar="K", help="versions from one evaluation to the next, with --follow (default: 1)"
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="the evaluator's keys, with --follow of a run that has them (default: none)",
    )

    def run(arguments: argparse.Namespace, config: Config) -> int:
        _ready_to_play(arguments)
        from apex_zmq.play import evaluator
        from apex_zmq.rundir.checkpoint import load, to_play

        games = arguments.episodes, arguments.protocol, arguments.seed
        if not arguments.follow:
            if arguments.every is not None or arguments.keys is not None:
                raise ConfigError("--every and --keys go with --follow; give it too, or neither")
            path = to_play(arguments.checkpoint)
            figures = evaluator.evaluate(load(path).on(arguments.emulator), *games, arguments.video)
            _print_figures({"checkpoint": str(path), **figures}, arguments.json)
            return 0
        directory, every = arguments.checkpoint, 1 if arguments.every is None else arguments.every
        if every < 1 or arguments.video or not directory.is_dir():
            raise ConfigError("--follow takes a run directory as --checkpoint, --every of at least 1, and no --video")
        os.nice(10)  # the run goes first
        with contextlib.suppress(KeyboardInterrupt):
            checkpoint = load(directory).on(arguments.emulator)
            for figures in evaluator.follow(checkpoint, directory, every, *games, arguments.keys):
                _print_figures(figures, arguments.json)
        return 0

    return program.main(parser, run, argv)


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    print(
        json.dumps(figures) if as_json else "\n".join(f"{name:12} {value}" for name, value in figures.items()),
        flush=True,
    )


def play(argv: Sequence[str] | None = None) -> int:
    """bin/apex-play."""
    parser = options.checkpoint_parser(
        "apex-play", "Shows how a checkpoint plays, what it sees and what it thinks.", episodes=1
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="write to FILE.mp4 or FILE.gif (default: show it in a window)"
    )

    def run(arguments: argparse.Namespace, config: Config) -> int:
        _ready_to_play(arguments)
        from apex_zmq.play import viewer
        from apex_zmq.rundir.checkpoint import load, to_play

        path = to_play(arguments.checkpoint)
        viewer.play(load(path), arguments.episodes, arguments.protocol, arguments.seed, arguments.video)
        return 0

    return program.main(parser, run, argv)


def keys(argv: Sequence[str] | None = None) -> int:
    """bin/apex-keys."""
    parser = options.Parser(
        "apex-keys",
        description="Makes the keys of a run over several machines, a directory for each holder. Without a name: those "
        "of replay and learner. With one: those of a client, which then stands on the lists of whom they let in.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of all keys of the run")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a client, such as one actor host")
    parser.add_argument(
        "--role", choices=("actor", "evaluator", "forwarder"), help="what the client is (default: none)"
    )
    parser.add_argument(
        "--behind", metavar="FORWARDER", help="the client takes parameters from this forwarder (default: the learner)"
    )
    parser.add_argument("--remove", action="store_true", help="strike the client off all lists and delete its keys")

    def run(arguments: argparse.Namespace, config: Config) -> int:
        from apex_zmq.net.keys import make_client, make_servers, remove

        root, name = arguments.directory, arguments.name
        if name is None:
            if arguments.role or arguments.behind or arguments.remove:
                raise ConfigError("--role, --behind and --remove say something of a client; give its NAME")
            made = make_servers(root)
        elif arguments.remove:
            if arguments.role or arguments.behind:
                raise ConfigError("--remove takes a NAME and nothing else")
            remove(root, name)
            made = []
        else:
            if arguments.role is None:
                raise ConfigError(f"what is {name}? give --role actor, evaluator or forwarder")
            made = [make_client(root, name, arguments.role, arguments.behind)]
        for path in made:
            print(f"{path}: copy it to where {path.name} runs, and give it there as --keys")
        if name is not None:
            print(f"lists in {root}/*/allowed are new: copy them to where their holders run; they are read at once")
        return 0

    return program.main(parser, run, argv)


def doctor(argv: Sequence[str] | None = None) -> int:
    """bin/apex-doctor."""
    parser = options.settings_parser(
        "apex-doctor",
        "Checks a host before a run, and a run before you blame it: a line for each check, and what to do about what "
        "is not ok. Give it config, addresses and keys of the roles that run here. Ends with 1 when a check fails.",
    )
    options.add_address_options(parser)
    options.add_insecure_option(parser)
    parser.add_argument(
        "--role",
        action="append",
        choices=("actor", "replay", "learner", "evaluator", "forwarder", "train"),
        default=[],
        help="what runs on this host; may be repeated; train: all roles of a run, started by apex-train (default: the "
        "role of the keys, else the roles whose addresses are this host's, else actor)",
    )
    parser.add_argument("--json", action="store_true", help="print all checks as one line of JSON")

    def run(arguments: argparse.Namespace, config: Config) -> int:
        if "train" not in arguments.role:
            validate(config)
        logging.basicConfig(handlers=[logging.NullHandler()])  # what is wrong the checks will say
        from apex_zmq.watch.doctor.check import line_of

        try:
            from apex_zmq.watch.doctor.examine import examine
        except ImportError as error:
            raise UserError(f"nothing can run here: {error}; {INSTALL}") from None
        checks = []
        for check in examine(config, arguments.role):
            checks.append(check)
            if not arguments.json:
                print(line_of(check), flush=True)
        count = Counter(check.level for check in checks)
        if arguments.json:
            print(json.dumps({"failures": count["fail"], "checks": [check._asdict() for check in checks]}))
        else:
            print(f"{len(checks)} checks: {count['ok']} ok, {count['warn']} warn, {count['fail']} FAIL")
        return 1 if count["fail"] else 0

    return program.main(parser, run, argv, options.address_overrides, addressed=False)


def top(argv: Sequence[str] | None = None) -> int:
    """bin/apex-top."""
    parser = options.settings_parser(
        "apex-top", "Shows a run while it goes: who does what, who waits for whom, and what to change."
    )
    options.add_address_options(parser, ("parameters", "keys"))
    parser.add_argument(
        "--once", action="store_true", help="print one picture, once every role has been heard, and end"
    )
    parser.add_argument("--json", action="store_true", help="with --once: as one JSON object in one line")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="with --once: seconds to wait for all roles (default: 20)"
    )

    def run(arguments: argparse.Namespace, config: Config) -> int:
        if not arguments.once and (arguments.json or arguments.timeout is not None):
            raise ConfigError("--json and --timeout go with --once; give it too, or neither")
        if not arguments.once and not sys.stdout.isatty():
            raise ConfigError("standard output is no terminal; give --once, or --once --json")
        address = config.addresses.parameters
        check_address(address)
        from apex_zmq.net import keys
        from apex_zmq.watch import top

        with contextlib.closing(top.Listener(address, keys.client_keys(config.addresses, "parameters"))) as listener:
            if arguments.once:
                timeout_s = 20.0 if arguments.timeout is None else arguments.timeout
                return top.once(listener, timeout_s, as_json=arguments.json)
            stop = threading.Event()
            # KeyboardInterrupt would be lost where Python ignores exceptions: in destructors and callbacks.
            signal.signal(signal.SIGINT, lambda *_: stop.set())
            top.live(listener, stop)
        return 0

    return program.main(parser, run, argv, options.address_overrides, addressed=False)


def _ready_to_play(arguments: argparse.Namespace) -> None:
    """Check what a file cannot tell; one thread, as an actor; remarks beside the figures on standard output."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if arguments.episodes < 1 or arguments.seed < 0:
        raise ConfigError("--episodes must be at least 1 and --seed at least 0")
    if arguments.video is not None:
        from apex_zmq.play import video

        video.check(arguments.video)
