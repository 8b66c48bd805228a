"""The programs under `bin/`, and those among them that make up a run: arguments and signals.

Heavy imports wait until the arguments are known to be good, so that `--help`
answers at once.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from apex_zmq.cli import logs, options, program, tools
from apex_zmq.cli.launch import LAUNCHED, launch
from apex_zmq.config.check import check_address
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.replay.disk.budget import check_memory
from apex_zmq.rundir import directory as rundir

PR_SET_PDEATHSIG = 1


def actor(argv: Sequence[str] | None = None) -> int:
    """bin/apex-actor."""
    parser = options.role_parser(
        "apex-actor", "Plays with the learner's parameters and sends its experience to the replay."
    )
    options.add_role_options(parser)
    parser.add_argument(
        "--actor-index",
        type=int,
        metavar="I",
        help="place among the actors, from 0; goes with --num-lanes (default: none)",
    )
    parser.add_argument(
        "--num-lanes",
        type=int,
        metavar="N",
        help="lanes of all actors together: with --actor-index, lane i explores with the paper's fixed "
        "eps^(1 + alpha i/(N-1)); without both, each episode draws its epsilon from the same spread (default)",
    )
    options.add_render_option(parser, "actor")

    def run(arguments: argparse.Namespace, config: Config) -> int:
        index, total = arguments.actor_index, arguments.num_lanes
        if (index is None) != (total is None):
            raise ConfigError("--actor-index and --num-lanes go together; give both or neither")
        if index is not None and not 0 <= index * config.actor.lanes <= total - config.actor.lanes:
            raise ConfigError(
                f"--actor-index {index} with {config.actor.lanes} lanes lies outside --num-lanes {total}; "
                "count the lanes of all actors"
            )
        name = f"actor-{index}" if index is not None else f"actor-{socket.gethostname()[:40]}-{os.getpid()}"
        stop = _prepare(name, config, config.actor.threads, arguments.log_format, arguments.log_dir)
        from apex_zmq.roles.actor.loop import Actor

        Actor(config, name, index, total, render=arguments.render).run(stop)
        return 0

    return program.main(parser, run, argv, options.address_overrides)


def replay(argv: Sequence[str] | None = None) -> int:
    """bin/apex-replay."""
    parser = options.role_parser("apex-replay", "Stores experience and deals prioritized batches to the learner.")
    options.add_role_options(parser)
    parser.add_argument("--shard", type=int, default=0, metavar="S", help="which shard this is, from 0 (default: 0)")

    def run(arguments: argparse.Namespace, config: Config) -> int:
        if not 0 <= arguments.shard < config.replay.shards:
            raise ConfigError(f"--shard {arguments.shard}: replay.shards is {config.replay.shards}; count from 0")
        stop = _prepare(f"replay-{arguments.shard}", config, 1, arguments.log_format, arguments.log_dir)
        from apex_zmq.roles.replay import ReplayServer

        ReplayServer(config, arguments.shard).run(stop)
        return 0

    return program.main(parser, run, argv, options.address_overrides)


def learner(argv: Sequence[str] | None = None) -> int:
    """bin/apex-learner."""
    parser = options.role_parser("apex-learner", "Trains on the replay's batches and publishes parameters.")
    options.add_role_options(parser)
    options.add_run_options(parser)

    def run(arguments: argparse.Namespace, config: Config) -> int:
        rank = int(os.environ.get("RANK", "0"))  # torchrun's
        place = _run_directory(arguments, config) if rank == 0 else None
        name = "learner" if rank == 0 else f"learner-{rank}"
        stop = _prepare(name, config, config.learner.threads, arguments.log_format, arguments.log_dir)
        from apex_zmq.agent.ranks import RankLostError, Ranks
        from apex_zmq.roles.learner.loop import Learner

        ranks = Ranks.join()
        try:
            directory, resume = ranks.share(place and (str(place[0]), place[1]))
            Learner(config, Path(directory), resume=resume, init_from=arguments.init_from, ranks=ranks).run(stop)
        except RankLostError as error:
            logging.getLogger(__name__).error("%s", error)
            return 1
        return 0

    return program.main(parser, run, argv, options.address_overrides)


def forwarder(argv: Sequence[str] | None = None) -> int:
    """bin/apex-forwarder."""
    parser = options.role_parser(
        "apex-forwarder", "Publishes the learner's parameters again for the actors of this host."
    )
    options.add_role_options(parser)
    parser.add_argument(
        "--bind",
        required=True,
        metavar="ADDRESS",
        help="where to publish, tcp://host:port or ipc:///path; actors get it as their --parameters",
    )

    def run(arguments: argparse.Namespace, config: Config) -> int:
        check_address(arguments.bind)
        name = f"forwarder-{socket.gethostname()[:40]}-{os.getpid()}"
        stop = _prepare(name, config, 1, arguments.log_format, arguments.log_dir)
        from apex_zmq.roles.forwarder import Forwarder

        Forwarder(config, name, arguments.bind).run(stop)
        return 0

    return program.main(parser, run, argv, options.address_overrides)


def train(argv: Sequence[str] | None = None) -> int:
    """bin/apex-train."""
    parser = options.role_parser("apex-train", "Starts actors, replay and learner of one run on this machine.")
    options.add_train_flags(parser)
    options.add_run_options(parser)
    parser.add_argument("--tcp", action="store_true", help="loopback TCP between the roles instead of ipc")
    options.add_render_option(parser, "actor of lowest epsilon")

    def run(arguments: argparse.Namespace, config: Config) -> int:
        if arguments.render:
            from apex_zmq.play.window import Window

            Window(1, 1).close()  # before anything starts
        directory, resume = _run_directory(arguments, config)
        check_memory(config, config.replay.shards)
        if arguments.init_from is not None:
            from apex_zmq.rundir.checkpoint import load, to_play

            load(to_play(arguments.init_from))
        return launch(
            config,
            directory,
            tcp=arguments.tcp,
            resume=resume,
            init_from=arguments.init_from,
            log_format=arguments.log_format,
            render=arguments.render,
        )

    return program.main(parser, run, argv, options.train_overrides, addressed=False)


def _run_directory(arguments: argparse.Namespace, config: Config) -> tuple[Path, bool]:
    """Where the run goes, once it and the checkpoint it starts from are known to be usable; whether it is resumed."""
    if arguments.resume and arguments.init_from:
        raise ConfigError("--resume and --init-from exclude each other; give one")
    given = arguments.run_dir or (Path(config.run.dir) if config.run.dir else None)
    resume = arguments.resume == "always"
    if arguments.resume == "auto":
        if given is None:
            raise ConfigError("--resume auto needs --run-dir, which must be the same each time")
        resume = rundir.holds_run(given)
    directory = rundir.choose(given, arguments.config.stem if arguments.config else "default", resume)
    rundir.check(directory, resume)
    return directory, resume


def _prepare(
    name: str, config: Config, threads: int, log_format: logs.Format = "text", log_dir: Path | None = None
) -> threading.Event:
    """Logging, threads and signals of a role; the event is set when it is to stop."""
    logs.configure(name, config.telemetry.log_level, log_format, log_dir)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if LAUNCHED in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return stop


PROGRAMS = {
    "actor": actor,
    "replay": replay,
    "learner": learner,
    "forwarder": forwarder,
    "train": train,
    "eval": tools.evaluate,
    "play": tools.play,
    "keys": tools.keys,
    "doctor": tools.doctor,
    "top": tools.top,
}
