"""Optional programs: play checkpoints, make keys, check hosts, show runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import threading
from collections import Counter
from typing import Any

from apex_zmq.cli import logs, options
from apex_zmq.cli.options import Parser
from apex_zmq.cli.program import Argv, program
from apex_zmq.config.check import check_address, validate
from apex_zmq.errors import INSTALL, ConfigError, UserError


@program("apex-eval", "Plays a checkpoint and reports its scores.")
def evaluate(parser: Parser, argv: Argv) -> int:
    """bin/apex-eval."""
    options.add_checkpoint_options(parser, episodes=10)
    parser.add_argument(
        "--video", type=options.path, metavar="FILE", help="video of the games, FILE.mp4 or FILE.gif (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="print the scores as one line of JSON")
    parser.add_argument(
        "--emulator", choices=("fceumm", "nes-py"), help="emulator of Mario's games (default: its run's setting)"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="evaluate the parameters that the run of this run directory publishes, until Ctrl-C; the best are saved "
        "in its best-eval.safetensors",
    )
    parser.add_argument(
        "--every", type=int, metavar="K", help="versions from one evaluation to the next, with --follow (default: 1)"
    )
    parser.add_argument(
        "--keys",
        type=options.path,
        metavar="DIR",
        help="directory of the evaluator's keys, with --follow of a run with keys (default: none)",
    )
    arguments = parser.parse_args(argv)

    _prepare_to_play(arguments)
    from apex_zmq.play import evaluator
    from apex_zmq.rundir.checkpoint import load, to_play

    games = arguments.episodes, arguments.protocol, arguments.seed
    if not arguments.follow:
        if arguments.every is not None or arguments.keys is not None:
            raise ConfigError("--every and --keys need --follow; add it, or leave them out")
        path = to_play(arguments.checkpoint)
        figures = evaluator.evaluate(load(path).on(arguments.emulator), *games, arguments.video)
        _print_figures({"checkpoint": str(path), **figures}, arguments.json)
        return 0
    directory, every = arguments.checkpoint, 1 if arguments.every is None else arguments.every
    if every < 1 or arguments.video or not directory.is_dir():
        raise ConfigError("--follow takes a run directory as --checkpoint, --every of at least 1, and no --video")
    os.nice(10)  # training has priority
    with contextlib.suppress(KeyboardInterrupt):
        checkpoint = load(directory).on(arguments.emulator)
        for figures in evaluator.follow(checkpoint, directory, every, *games, arguments.keys):
            _print_figures(figures, arguments.json)
    return 0


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    print(
        json.dumps(figures) if as_json else "\n".join(f"{name:12} {value}" for name, value in figures.items()),
        flush=True,
    )


@program("apex-play", "Shows the games of a checkpoint, with its inputs and action values.")
def play(parser: Parser, argv: Argv) -> int:
    """bin/apex-play."""
    options.add_checkpoint_options(parser, episodes=1)
    parser.add_argument(
        "--video",
        type=options.path,
        metavar="FILE",
        help="video to write, FILE.mp4 or FILE.gif (default: none, a window)",
    )
    arguments = parser.parse_args(argv)

    _prepare_to_play(arguments)
    from apex_zmq.play import viewer
    from apex_zmq.rundir.checkpoint import load, to_play

    path = to_play(arguments.checkpoint)
    viewer.play(load(path), arguments.episodes, arguments.protocol, arguments.seed, arguments.video)
    return 0


def _prepare_to_play(arguments: argparse.Namespace) -> None:
    """Check the options; use one thread, as an actor does; log to standard error, beside the printed scores."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if arguments.episodes < 1 or arguments.seed < 0:
        raise ConfigError("--episodes must be at least 1 and --seed at least 0")
    if arguments.video is not None:
        from apex_zmq.play import video

        video.check(arguments.video)


@program(
    "apex-keys",
    "Makes the keys of a run over several machines, one directory per holder. Without NAME: keys of replay and "
    "learner. With NAME: keys of a client, which is added to the lists of its servers.",
)
def keys(parser: Parser, argv: Argv) -> int:
    """bin/apex-keys."""
    parser.add_argument("directory", type=options.path, metavar="DIR", help="directory of all keys of the run")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a client, such as one actor host")
    parser.add_argument(
        "--role", choices=("actor", "evaluator", "forwarder"), help="role of the client (default: none)"
    )
    parser.add_argument(
        "--behind", metavar="FORWARDER", help="forwarder that the client takes parameters from (default: the learner)"
    )
    parser.add_argument("--remove", action="store_true", help="remove the client from all lists and delete its keys")
    arguments = parser.parse_args(argv)

    from apex_zmq.net.keys import make_client, make_servers, remove

    root, name = arguments.directory, arguments.name
    if name is None:
        if arguments.role or arguments.behind or arguments.remove:
            raise ConfigError("--role, --behind and --remove apply to a client; give its NAME")
        made = make_servers(root)
    elif arguments.remove:
        if arguments.role or arguments.behind:
            raise ConfigError("--remove takes a NAME and no other option")
        remove(root, name)
        made = []
    else:
        if arguments.role is None:
            raise ConfigError(f"{name} has no role; give --role actor, evaluator or forwarder")
        made = [make_client(root, name, arguments.role, arguments.behind)]
    for path in made:
        print(f"{path}: copy it to the host of {path.name}, and pass it there with --keys")
    if name is not None:
        print(f"lists in {root}/*/allowed have changed: copy them to their holders, which reload them at once")
    return 0


@program(
    "apex-doctor",
    "Checks a host before or during a run: one line per check, with a remedy if it is not ok. Give it config, "
    " addresses and keys of the roles that run here. Exit code 1: a check has failed.",
)
def doctor(parser: Parser, argv: Argv) -> int:
    """bin/apex-doctor."""
    options.add_settings(parser)
    options.add_flags(parser, options.ADDRESS_FLAGS | options.INSECURE_FLAG)
    parser.add_argument(
        "--role",
        action="append",
        choices=("actor", "replay", "learner", "evaluator", "forwarder", "train"),
        default=[],
        help="role that runs on this host; may be repeated; train: all roles of a run, started by apex-train (default: "
        "the role of the keys, else the roles with an address on this host, else actor)",
    )
    parser.add_argument("--json", action="store_true", help="print all checks as one line of JSON")
    arguments, config = options.parse(parser, argv, addressed=False)

    if "train" not in arguments.role:
        validate(config)
    logging.basicConfig(handlers=[logging.NullHandler()])  # the checks report the same errors
    from apex_zmq.watch.doctor.check import line_of

    try:
        from apex_zmq.watch.doctor.examine import examine
    except ImportError as error:
        raise UserError(f"cannot start: {error}; {INSTALL}") from None
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


@program("apex-top", "Shows a live run: rates and waits of each role, and the setting to change.")
def top(parser: Parser, argv: Argv) -> int:
    """bin/apex-top."""
    options.add_settings(parser)
    flags = ("--parameters", "--keys")
    options.add_flags(parser, {flag: options.ADDRESS_FLAGS[flag] for flag in flags})
    parser.add_argument("--once", action="store_true", help="print the run when every role has reported, and exit")
    parser.add_argument("--json", action="store_true", help="with --once: as one JSON object in one line")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds to wait for all roles, with --once (default: 20)"
    )
    arguments, config = options.parse(parser, argv, addressed=False)

    if not arguments.once and (arguments.json or arguments.timeout is not None):
        raise ConfigError("--json and --timeout need --once; add it, or leave them out")
    if not arguments.once and not logs.moves_cursor():
        raise ConfigError("standard output is not a terminal that can redraw lines; give --once, or --once --json")
    address = config.addresses.parameters
    check_address(address)
    from apex_zmq.net.sockets import Links
    from apex_zmq.watch.top import Listener, live, once

    with contextlib.closing(Listener(Links(config))) as listener:
        if arguments.once:
            timeout_s = 20.0 if arguments.timeout is None else arguments.timeout
            return once(listener, timeout_s, as_json=arguments.json)
        stop = threading.Event()
        # KeyboardInterrupt would be lost where Python ignores exceptions: in destructors and callbacks.
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        live(listener, stop)
    return 0
