"""The evaluator: plays a checkpoint under a fixed protocol and sums up."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq.checkpoint import Checkpoint
from apex_zmq.roles.player import Moment, Player, Protocol
from apex_zmq.video import Video


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
