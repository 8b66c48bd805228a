"""The TensorBoard events of a run: curves, histograms, their arrangement, hyper-parameters."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from apex_zmq.config.loading import to_yaml
from apex_zmq.config.settings import Config, to_tree
from apex_zmq.envs.games import WORLDS

log = logging.getLogger(__name__)

RETRY_S = 60.0
BINS = 64  # of a histogram, of equal width; TensorBoard shows fewer
COMPARED = ("run.seed", "run.num_actors", "env.", "agent.", "actor.", "replay.", "learner.")  # hyper-parameters
FINAL = ("rollout/ep_rew_mean", "rollout/low_epsilon/ep_rew_mean", "train/updates")
FINAL_MARIO = ("rollout/clear_rate", "rollout/low_epsilon/clear_rate", "rollout/best_x")
# Tags as in Stable-Baselines3's EvalCallback, and the figures of an evaluation that they show.
EVALUATION = {
    "eval/mean_reward": "mean_return",
    "eval/mean_ep_length": "mean_length",
    "eval/clear_rate": "clear_rate",
    "eval/mean_x": "mean_x",
    "eval/best_x": "best_x",
}
# The page "Custom Scalars": category, chart, tags.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Learning": {
        "return": ("rollout/ep_rew_mean", "rollout/low_epsilon/ep_rew_mean", "eval/mean_reward"),
        "clear rate": ("rollout/clear_rate", "rollout/low_epsilon/clear_rate", "eval/clear_rate"),
        "loss": ("train/loss",),
        "Q": ("train/q_mean",),
        "samples per insert": ("replay/samples_per_insert",),
        "rates, 1/s": ("time/decisions_per_s", "time/inserts_per_s", "time/updates_per_s"),
    },
    "Play": {
        "return by epsilon": ("rollout/ep_rew_mean_by_epsilon/.*",),
        "stages cleared": ("rollout/stages_cleared_mean", "rollout/low_epsilon/stages_cleared_mean"),
        "largest x": ("rollout/max_x", "rollout/max_x_mean", "rollout/low_epsilon/max_x_mean"),
        "episode length": ("rollout/ep_len_mean", "rollout/low_epsilon/ep_len_mean"),
    },
    "Machinery": {
        "waiting": ("wait/.*",),
        "parameter age, s": ("actors/parameter_age_s",),
        "|TD| and gradient": ("train/td_error_mean", "train/grad_norm"),
        "resident memory, bytes": ("memory/.*",),
        "faults": (
            "actors/dropped_segments",
            "replay/segments_.*",
            "train/corrupted_windows",
            "train/bad_steps",
            "time/restarts",
        ),
    },
}
MARIO_CHARTS = ("clear rate", "stages cleared", "largest x")


class _Events:
    """Writes events. What a full disk does not take is lost and said; a new file is begun when there may be room."""

    def __init__(self, directory: Path, purge_step: int | None = None) -> None:
        self._directory = directory
        self._purge_step = purge_step
        self._writer: SummaryWriter | None = None
        self._retry_at = 0.0

    def write(self, add: Callable[[SummaryWriter], None]) -> None:
        """Have `add` put something into the file, and flush."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
            add(self._writer)
            self._writer.flush()
            self._purge_step = None
        except OSError as error:
            # The writer's thread has died of it, and no reader gets past what it wrote by half.
            log.error("TensorBoard misses points, training goes on: %s", error)
            self._writer, self._retry_at = None, time.monotonic() + RETRY_S

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self.write(SummaryWriter.close)


class Board:
    """The TensorBoard events of a run, over decisions.

    start: decisions so far; what an interrupted run wrote beyond is hidden, so
    that a resumed run's curves join.
    """

    def __init__(self, directory: Path, config: Config, start: int) -> None:
        mario = config.env.id in WORLDS
        self._events = _Events(directory, purge_step=start)
        # SummaryWriter.add_hparams would make a second run of them, below this one. The dashboard shows the
        # last value of these curves.
        metrics = dict.fromkeys(FINAL + (FINAL_MARIO if mario else ()))
        *begin, self._end = hparams(_hyper_parameters(config), metrics)  # type: ignore[no-untyped-call]

        def introduce(writer: SummaryWriter) -> None:
            writer.add_text("config", f"```yaml\n{to_yaml(config)}```", start)
            writer.add_custom_scalars(_layout(mario))
            for summary in begin:
                _file_writer(writer).add_summary(summary)

        self._events.write(introduce)

    def write(self, numbers: Mapping[str, float], histograms: Mapping[str, npt.NDArray[Any]], decisions: int) -> None:
        """One point of each curve, and one histogram of each array."""

        def add(writer: SummaryWriter) -> None:
            for tag, value in numbers.items():
                writer.add_scalar(tag, value, decisions)
            for tag, values in histograms.items():
                writer.add_histogram(tag, values, decisions, bins=BINS)

        self._events.write(add)

    def close(self) -> None:
        """Mark the run as ended, flush and close."""
        self._events.write(lambda writer: _file_writer(writer).add_summary(self._end))
        self._events.close()


class EvaluationBoard:
    """The TensorBoard events of a run's evaluations, over the run's decisions.

    In a run of its own below the run's, named eval: the files of two processes stay apart.
    """

    def __init__(self, directory: Path) -> None:
        self._events = _Events(directory / "eval")

    def write(self, figures: Mapping[str, Any], decisions: int) -> None:
        """One point of the curve of each figure that has one."""

        def add(writer: SummaryWriter) -> None:
            for tag, name in EVALUATION.items():
                if name in figures:
                    writer.add_scalar(tag, figures[name], decisions)

        self._events.write(add)

    def show(self, gif: bytes, decisions: int) -> None:
        """A film of the best so far."""
        # What SummaryWriter.add_video writes; it would want moviepy for the same GIF.
        columns, rows = struct.unpack_from("<HH", gif, 6)
        image = Summary.Image(height=rows, width=columns, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag="eval/best", image=image)])
        self._events.write(lambda writer: _file_writer(writer).add_summary(summary, decisions))

    def close(self) -> None:
        """Flush and close."""
        self._events.close()


def _file_writer(writer: SummaryWriter) -> Any:
    assert writer.file_writer is not None
    return writer.file_writer


def _layout(mario: bool) -> dict[str, dict[str, list[Any]]]:
    """CHARTS as `SummaryWriter.add_custom_scalars` takes them; tags are patterns that match from the start."""
    return {
        category: {
            title: ["Multiline", [f"{tag}$" for tag in tags]]
            for title, tags in charts.items()
            if mario or title not in MARIO_CHARTS
        }
        for category, charts in CHARTS.items()
    }


def _hyper_parameters(config: Config) -> dict[str, float | str]:
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value)
        for name, value in _leaves(to_tree(config))
        if name.startswith(COMPARED) and name != "replay.snapshot_dir"
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
