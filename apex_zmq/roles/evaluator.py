"""The evaluator: plays a checkpoint, or what a live run publishes, under a fixed protocol and sums up."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq import config as settings
from apex_zmq.checkpoint import BEST_EVAL, Checkpoint, CheckpointError, save
from apex_zmq.networks import load_arrays, to_arrays
from apex_zmq.roles.parameters import ParameterFollower
from apex_zmq.roles.player import Moment, Player, Protocol
from apex_zmq.roles.status import StatusReporter
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.video import Video
from apex_zmq.wire.messages import Parameters

log = logging.getLogger(__name__)

IDLE_S = 0.5


def evaluate(
    checkpoint: Checkpoint, episodes: int, protocol: Protocol, seed: int, video: Path | None = None
) -> dict[str, Any]:
    """Play a checkpoint and sum up; the figures are ready for JSON.

    video: file that shows all episodes.

    Raises:
        ConfigError, EnvError: an environment that cannot be made.
        VideoError: a video that cannot be written.
    """
    with contextlib.ExitStack() as stack:
        player = stack.enter_context(contextlib.closing(Player.of(checkpoint, protocol, seed, render=bool(video))))
        film = stack.enter_context(contextlib.closing(Video(video, player.lanes.decisions_per_s))) if video else None
        ends = [_play(player, film) for _ in range(episodes)]
    return {"env": checkpoint.config["env"]["id"], "protocol": protocol, "seed": seed, **summarize(ends)}


def _play(player: Player, film: Video | None) -> Moment:
    """An episode's last moment."""
    for moment in player.episode():
        end = moment
        if film is not None:
            film.show(player.lanes.render(0))
    return end


def summarize(ends: list[Moment]) -> dict[str, Any]:
    """The figures of some episodes, given their last moments."""
    summary: dict[str, Any] = {
        "episodes": len(ends),
        "mean_return": float(np.mean([end.episode_return for end in ends])),
        "mean_length": float(np.mean([end.length for end in ends])),
    }
    progress = [end.progress for end in ends if end.progress is not None]
    if progress:
        summary |= {
            "stages": sorted({each.stage for each in progress}),
            "clear_rate": float(np.mean([each.cleared for each in progress])),
            "mean_x": float(np.mean([each.max_x for each in progress])),
            "best_x": max(each.max_x for each in progress),
        }
    return summary


def follow(
    checkpoint: Checkpoint, directory: Path, every: int, episodes: int, protocol: Protocol, seed: int
) -> Iterator[dict[str, Any]]:
    """Evaluate what a live run publishes, every so many versions, and keep the best in its run directory.

    The run hears of each evaluation in a status of role evaluator. Ends when closed.

    Args:
        checkpoint: one of the run's: its settings say where the run publishes.
        directory: the run's; the best by mean return so far becomes best-eval.safetensors there.
        every: versions from one evaluation to the next, at least; what comes in between is left out.
        episodes: of each evaluation.
        protocol: as for `evaluate`.
        seed: of the first evaluation's games; later ones go on from there.

    Yields:
        The figures of each evaluation.

    Raises:
        ConfigError, EnvError: an environment that cannot be made.
        MismatchError: the run at this address trains something else by now.
    """
    config = settings.from_tree(checkpoint.config, "checkpoint")
    addresses, boot = config.addresses, secrets.randbits(63)
    reporter = StatusReporter(
        "evaluator", f"evaluator-{os.getpid()}", boot, addresses.status, config.telemetry.status_interval_s
    )
    with contextlib.ExitStack() as stack:
        player = stack.enter_context(contextlib.closing(Player(config, protocol, seed)))
        network = network_signature(to_arrays(player.network))
        follower = stack.enter_context(
            contextlib.closing(ParameterFollower(addresses.parameters, network, experience_signature(config)))
        )
        reporter.start()
        stack.enter_context(contextlib.closing(reporter))
        evaluated: Parameters | None = None
        best: float | None = None
        while True:
            arrays = follower.poll(IDLE_S)
            newest = follower.newest
            if arrays is None or newest is None:
                continue
            if evaluated and newest.epoch == evaluated.epoch and newest.version < evaluated.version + every:
                continue
            load_arrays(player.network, arrays)
            figures = summarize([_play(player, None) for _ in range(episodes)])
            evaluated, score = newest, figures["mean_return"]
            reporter.progress()
            reporter.metrics = {"version": newest.version, "update": newest.update, "mean_return": score}
            if best is None or score > best:
                best = score
                _promote(directory / BEST_EVAL, checkpoint, player, newest, score)
            yield {"version": newest.version, "update": newest.update, "protocol": protocol, **figures}


def _promote(path: Path, checkpoint: Checkpoint, player: Player, parameters: Parameters, score: float) -> None:
    """Save what has just been evaluated, to be played or to start from; the run's training state is not in it."""
    evaluated = dataclasses.replace(
        checkpoint,
        tensors={"online": dict(player.network.state_dict())},
        counters={"updates": parameters.update},
        epoch=parameters.epoch,
        best_score=score,
    )
    try:
        save(path, evaluated)
    except CheckpointError as error:
        log.warning("evaluation goes on without: %s", error)
