"""The programs that make up a run: actor, replay, learner, forwarder, and the launcher of all of them.

Heavy imports follow the check of the arguments, so that `--help` is fast.
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
from pathlib import Path

from apex_zmq.cli import logs, options
from apex_zmq.cli.launch import LAUNCHED, launch
from apex_zmq.cli.options import Parser
from apex_zmq.cli.program import Argv, program
from apex_zmq.config import torchrun
from apex_zmq.config.check import check_address
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.replay.disk.budget import check_memory
from apex_zmq.rundir import directory as rundir

PR_SET_PDEATHSIG = 1


@program("apex-actor", "Plays with the learner's parameters and sends experience to the replay.")
def actor(parser: Parser, argv: Argv) -> int:
    """bin/apex-actor."""
    options.add_role_options(parser)
    parser.add_argument(
        "--actor-index",
        type=int,
        metavar="I",
        help="index of this actor, from 0; requires --num-lanes (default: none)",
    )
    parser.add_argument(
        "--num-lanes",
        type=int,
        metavar="N",
        help="lanes of all actors together: with --actor-index, lane i explores with the paper's fixed "
        "eps^(1 + alpha i/(N-1)); without both, each episode draws its epsilon from the same spread (default: none)",
    )
    options.add_render_option(parser, "actor")
    arguments, config = options.parse(parser, argv)

    index, total = arguments.actor_index, arguments.num_lanes
    if (index is None) != (total is None):
        raise ConfigError("--actor-index and --num-lanes go together; give both or neither")
    if index is not None and not 0 <= index * config.actor.lanes <= total - config.actor.lanes:
        raise ConfigError(
            f"--actor-index {index} with {config.actor.lanes} lanes is outside --num-lanes {total}; "
            "count the lanes of all actors"
        )
    name = f"actor-{index}" if index is not None else f"actor-{socket.gethostname()[:40]}-{os.getpid()}"
    stop = _start_role(name, config, config.actor.threads, arguments)
    from apex_zmq.roles.actor.loop import Actor

    Actor(config, name, index, total, render=arguments.render).run(stop)
    return 0


@program("apex-replay", "Stores experience and sends prioritized batches to the learner.")
def replay(parser: Parser, argv: Argv) -> int:
    """bin/apex-replay."""
    options.add_role_options(parser)
    parser.add_argument("--shard", type=int, default=0, metavar="S", help="number of this shard, from 0 (default: 0)")
    arguments, config = options.parse(parser, argv)

    if not 0 <= arguments.shard < config.replay.shards:
        raise ConfigError(f"--shard {arguments.shard}: replay.shards is {config.replay.shards}; count from 0")
    stop = _start_role(f"replay-{arguments.shard}", config, 1, arguments)
    from apex_zmq.roles.replay import ReplayServer

    ReplayServer(config, arguments.shard).run(stop)
    return 0


@program("apex-learner", "Trains on the replay's batches and publishes parameters.")
def learner(parser: Parser, argv: Argv) -> int:
    """bin/apex-learner."""
    options.add_role_options(parser)
    options.add_run_options(parser)
    arguments, config = options.parse(parser, argv)

    rank = torchrun.place().rank
    run = _run_directory(arguments, config) if rank == 0 else None
    name = "learner" if rank == 0 else f"learner-{rank}"
    stop = _start_role(name, config, config.learner.threads, arguments)
    from apex_zmq.agent.ranks import RankLostError, Ranks
    from apex_zmq.roles.learner.loop import Learner

    ranks = Ranks.join()
    try:
        directory, resume = ranks.share(run and (str(run[0]), run[1]))
        Learner(config, Path(directory), resume=resume, init_from=arguments.init_from, ranks=ranks).run(stop)
    except RankLostError as error:
        logging.getLogger(__name__).error("%s", error)
        return 1
    return 0


@program("apex-forwarder", "Republishes the learner's parameters for the actors of this host.")
def forwarder(parser: Parser, argv: Argv) -> int:
    """bin/apex-forwarder."""
    options.add_role_options(parser)
    parser.add_argument(
        "--bind",
        required=True,
        metavar="ADDRESS",
        help="address to publish on, tcp://host:port or ipc:///path; pass it to actors as --parameters",
    )
    arguments, config = options.parse(parser, argv)

    check_address(arguments.bind)
    name = f"forwarder-{socket.gethostname()[:40]}-{os.getpid()}"
    stop = _start_role(name, config, 1, arguments)
    from apex_zmq.roles.forwarder import Forwarder

    Forwarder(config, name, arguments.bind).run(stop)
    return 0


@program("apex-train", "Starts actors, replay and learner of one run on this machine.")
def train(parser: Parser, argv: Argv) -> int:
    """bin/apex-train."""
    options.add_settings(parser)
    options.add_log_format(parser)
    options.add_flags(parser, options.TRAIN_FLAGS)
    options.add_run_options(parser)
    parser.add_argument("--tcp", action="store_true", help="loopback TCP between the roles instead of ipc")
    options.add_render_option(parser, "actor of lowest epsilon")
    arguments, config = options.parse(parser, argv, addressed=False)

    if arguments.render:
        from apex_zmq.play.window import Window

        Window(1, 1).close()  # a missing display is reported before anything starts
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


def _run_directory(arguments: argparse.Namespace, config: Config) -> tuple[Path, bool]:
    """Check the run directory; return it, and whether its run is resumed."""
    if arguments.resume and arguments.init_from:
        raise ConfigError("--resume and --init-from exclude each other; give one")
    given = arguments.run_dir or (Path(config.run.dir) if config.run.dir else None)
    resume = arguments.resume == "always"
    if arguments.resume == "auto":
        if given is None:
            raise ConfigError("--resume auto needs --run-dir, the same at each start")
        resume = rundir.holds_run(given)
    directory = rundir.choose(given, arguments.config.stem if arguments.config else "default", resume)
    rundir.check(directory, resume)
    return directory, resume


def _start_role(name: str, config: Config, threads: int, arguments: argparse.Namespace) -> threading.Event:
    """Set up logging, thread count and signals of a role; return the event that is set when the role must stop."""
    logs.configure(name, config.telemetry.log_level, arguments.log_format, arguments.log_dir)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if LAUNCHED in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return stop
