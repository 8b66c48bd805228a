"""Show a checkpoint playing, or a lane of a running actor, in a window or a video."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from apex_zmq.envs.info import VIEWED
from apex_zmq.envs.make import Lanes
from apex_zmq.play.picture import COLUMNS, ROWS, Scene, draw
from apex_zmq.play.player import Player, Protocol
from apex_zmq.play.video import Video
from apex_zmq.play.window import Window, WindowClosed
from apex_zmq.rundir.checkpoint import Checkpoint
from apex_zmq.types import Float32s

log = logging.getLogger(__name__)

PICTURES_PER_S = 10.0  # of an actor's lane: drawing every decision would slow the actor down


def play(checkpoint: Checkpoint, episodes: int, protocol: Protocol, seed: int, video: Path | None) -> None:
    """Show episodes in a window, in real time, or write them to a video file.

    video: file to write; None: a window.

    Raises:
        ConfigError, EnvError: the environment cannot be created or rendered.
        WindowError, VideoError: the window cannot be opened, or the video cannot be written.
    """
    with contextlib.ExitStack() as stack:
        player = stack.enter_context(contextlib.closing(Player.of(checkpoint, protocol, seed, render=True)))
        lanes = player.lanes
        rate = lanes.decisions_per_s
        screen: Video | Window = Video(video, rate) if video is not None else Window(ROWS, COLUMNS, rate)
        stack.enter_context(contextlib.closing(screen))
        stack.enter_context(contextlib.suppress(WindowClosed))
        for _ in range(episodes):
            values: list[float] = []
            for moment in player.episode():
                values.append(float(moment.q.max()))
                facts = _facts(moment.episode_return, player.epsilon, moment.stage, moment.info)
                game = lanes.render(0)
                scene = Scene(game, moment.observation, moment.q, moment.action, lanes.action_names, values, facts)
                screen.show(draw(scene))


class LaneWindow:
    """A window on one lane of an actor; closing it does not stop the actor.

    Raises:
        WindowError: the window cannot be opened.
    """

    def __init__(self, lanes: Lanes, lane: int) -> None:
        self.lane = lane
        self._lanes = lanes
        self._window: Window | None = Window(ROWS, COLUMNS)
        self._values: list[float] = []
        self._shown_at = 0.0

    def reset(self) -> None:
        """Clear the curve at the start of an episode."""
        self._values.clear()

    def show(
        self,
        observation: npt.NDArray[Any],
        q: Float32s,
        action: int,
        episode_return: float,
        epsilon: float,
        stage: str,
        info: Mapping[str, float],
    ) -> None:
        """Show the lane after a step: its new observation, and the decision that led to it."""
        self._values.append(float(q.max()))
        now = time.monotonic()
        if self._window is None or now - self._shown_at < 1 / PICTURES_PER_S:
            return
        self._shown_at = now
        game, facts = self._lanes.render(self.lane), _facts(episode_return, epsilon, stage, info)
        try:
            self._window.show(draw(Scene(game, observation, q, action, self._lanes.action_names, self._values, facts)))
        except WindowClosed:
            log.info("window closed; training continues")
            self.close()

    def close(self) -> None:
        """Close the window; no effect if it is closed."""
        if self._window is not None:
            self._window.close()
            self._window = None


def _facts(episode_return: float, epsilon: float, stage: str, info: Mapping[str, float]) -> dict[str, str]:
    facts = {"return": f"{episode_return:.2f}", "epsilon": f"{epsilon:.4f}"}
    if stage:
        facts["stage"] = stage
    return facts | {label: f"{info[entry]:g}" for entry, label in VIEWED.items() if entry in info}
