"""The evaluator: plays a checkpoint, or the published parameters of a live run, under a fixed protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq.agent.networks import load_arrays, to_arrays
from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.info import STATISTICS
from apex_zmq.envs.make import EnvError
from apex_zmq.errors import CheckpointError, ConfigError, MismatchError
from apex_zmq.net.parameters import Arrays, ParameterFollower
from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.play.player import Moment, Player, Protocol
from apex_zmq.play.video import Digest, Video
from apex_zmq.rundir.checkpoint import BEST_EVAL, Checkpoint, load, save
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import UInt8s
from apex_zmq.watch.tensorboard import EvaluationBoard
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Parameters, Status, decode_relayed_status

log = logging.getLogger(__name__)

IDLE_S = 0.5


def evaluate(
    checkpoint: Checkpoint, episodes: int, protocol: Protocol, seed: int, video: Path | None = None
) -> dict[str, Any]:
    """Play a checkpoint and return its figures, ready for JSON.

    video: file for a video of all episodes; None: no video.

    Raises:
        ConfigError, EnvError: the environment cannot be created.
        VideoError: the video cannot be written.
    """
    with contextlib.ExitStack() as stack:
        player = stack.enter_context(contextlib.closing(Player.of(checkpoint, protocol, seed, render=bool(video))))
        film = stack.enter_context(contextlib.closing(Video(video, player.lanes.decisions_per_s))) if video else None
        ends = [_play(player, film.show if film else None) for _ in range(episodes)]
    return {"env": checkpoint.config["env"]["id"], "protocol": protocol, "seed": seed, **summarize(ends)}


def _play(player: Player, show: Callable[[UInt8s], None] | None = None) -> Moment:
    """Play an episode and return its last moment."""
    for moment in player.episode():
        end = moment
        if show is not None:
            show(player.lanes.render(0))
    return end


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the score interval of a rate observed in `count` trials (Wilson 1927); z = 1.96: 95%."""
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def summarize(ends: list[Moment]) -> dict[str, Any]:
    """Return the figures of episodes from their last moments; rates have a 95% interval."""
    summary: dict[str, Any] = {
        "episodes": len(ends),
        "mean_return": float(np.mean([end.episode_return for end in ends])),
        "mean_length": float(np.mean([end.length for end in ends])),
    }
    if stages := sorted({end.stage for end in ends if end.stage}):
        summary["stages"] = stages
    for statistic in STATISTICS:
        value = statistic.of(end.info for end in ends) if statistic.figure else None
        if value is not None:
            summary[statistic.figure] = value
            if statistic.is_rate:
                summary[f"{statistic.figure}_95"] = [round(bound, 3) for bound in wilson(value, len(ends))]
    return summary


def follow(
    checkpoint: Checkpoint,
    directory: Path,
    every: int,
    episodes: int,
    protocol: Protocol,
    seed: int,
    keys: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Evaluate the published parameters of a live run every few versions, and save the best in its run directory.

    The evaluator subscribes only while it waits for the next version, so that it does not slow the run down. The
    parameters with the best mean return become best-eval.safetensors; an existing file is evaluated first, since it
    may have been chosen under another protocol. TensorBoard gets curves and a short film of each new best. The
    generator runs until it is closed.

    Args:
        checkpoint: a checkpoint of the run; its settings hold the addresses.
        directory: the run directory.
        every: versions between two evaluations, at least; versions in between are skipped.
        episodes: episodes of each evaluation.
        protocol: as for `evaluate`.
        seed: seed of the first evaluation's games; the generators continue in later ones.
        keys: directory of the evaluator's keys; None: a run without keys. (The keys in the settings are the learner's.)

    Yields:
        The figures of each evaluation.

    Raises:
        CheckpointError: best-eval.safetensors cannot be read.
        ConfigError, EnvError: the environment cannot be created, or the run requires keys and none are given.
        MismatchError: the address belongs to another run.
    """
    config = loading.from_tree(checkpoint.config, "checkpoint")
    if config.addresses.keys and keys is None:
        raise ConfigError("this run requires keys; pass the directory of an evaluator's keys with --keys")
    config = loading.replace(config, {"addresses.keys": str(keys) if keys is not None else None})
    with contextlib.ExitStack() as stack:
        player, drawn = _make_player(config, protocol, seed)
        stack.enter_context(contextlib.closing(player))
        board = stack.enter_context(contextlib.closing(EvaluationBoard(directory)))
        best, kept = -math.inf, directory / BEST_EVAL
        if kept.is_file():
            player.network.load_state_dict(load(kept).played)
            best = summarize([_play(player) for _ in range(episodes)])["mean_return"]
            log.info("mean return of %s, the best so far: %g", kept, best)
        evaluated: Parameters | None = None
        log.info("waiting for parameters from %s", config.addresses.parameters)
        while True:
            evaluated, arrays, decisions = _await_parameters(config, checkpoint.run_id, player, evaluated, every)
            load_arrays(player.network, arrays)
            film = Digest(player.lanes.decisions_per_s)
            ends = [_play(player, film.show if drawn and not episode else None) for episode in range(episodes)]
            figures = summarize(ends)
            if figures["mean_return"] > best:
                try:
                    _promote(kept, checkpoint, player, evaluated, figures["mean_return"])
                    best = figures["mean_return"]
                except CheckpointError as error:
                    log.warning("best parameters not saved, evaluation continues: %s", error)
                if drawn:
                    board.show(film.gif(), decisions)
            board.write(figures, decisions)
            yield {
                "version": evaluated.version,
                "update": evaluated.update,
                "decisions": decisions,
                "protocol": protocol,
                **figures,
            }


def _make_player(config: Config, protocol: Protocol, seed: int) -> tuple[Player, bool]:
    """Make a player; also return whether its environment can be rendered."""
    try:
        with contextlib.ExitStack() as unless_drawn:
            player = unless_drawn.enter_context(contextlib.closing(Player(config, protocol, seed, render=True)))
            player.lanes.reset(0)
            player.lanes.render(0)
            unless_drawn.pop_all()
            return player, True
    except EnvError as error:
        log.warning("films of the best parameters are disabled: %s", error)
        return Player(config, protocol, seed), False


def _await_parameters(
    config: Config, run_id: str, player: Player, evaluated: Parameters | None, every: int
) -> tuple[Parameters, Arrays, int]:
    """Wait for the next version to evaluate; return its parameters and the decisions of the run so far.

    Raises:
        MismatchError: the parameters belong to another run.
    """
    links = Links(config)
    network, experience = network_signature(to_arrays(player.network)), experience_signature(config)
    statuses: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
    follower = ParameterFollower(links, network, experience)
    with contextlib.closing(statuses), contextlib.closing(follower):
        arrays: Arrays | None = None
        decisions: int | None = None
        while True:
            arrays = follower.poll(IDLE_S) or arrays
            while (status := statuses.receive()) is not None:
                if status.role == "learner" and "decisions" in status.metrics:
                    decisions = round(status.metrics["decisions"])
            newest = follower.newest
            if newest is not None and newest.run != run_id:
                raise MismatchError(
                    f"{links.address('parameters')} now publishes run {newest.run}, not {run_id}; "
                    "pass that run's directory"
                )
            if newest is None or arrays is None or decisions is None:
                continue
            if (
                evaluated is None
                or newest.learner_incarnation != evaluated.learner_incarnation
                or newest.version >= evaluated.version + every
            ):
                return newest, arrays, decisions


def _promote(path: Path, checkpoint: Checkpoint, player: Player, parameters: Parameters, score: float) -> None:
    """Save the evaluated parameters without the training state, to play them or to initialize another run.

    Raises:
        CheckpointError: the file cannot be written.
    """
    evaluated = dataclasses.replace(
        checkpoint,
        tensors={"online": dict(player.network.state_dict())},
        counters={"updates": parameters.update},
        learner_incarnation=parameters.learner_incarnation,
        best_score=score,
    )
    save(path, evaluated)
