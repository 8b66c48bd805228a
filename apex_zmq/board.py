"""The TensorBoard events of a run: curves, histograms, their arrangement, hyper-parameters."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from apex_zmq.config import WORLDS, Config, to_tree
from apex_zmq.configure import to_yaml

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
    },
}
MARIO_CHARTS = ("clear rate", "stages cleared", "largest x")


class Board:
    """The TensorBoard events of a run, over decisions.

    start: decisions so far; what an interrupted run wrote beyond is hidden, so
    that a resumed run's curves join.
    """

    def __init__(self, directory: Path, config: Config, start: int) -> None:
        mario = config.env.id in WORLDS
        self._writer = SummaryWriter(str(directory), purge_step=start if start else None)
        self._writer.add_text("config", f"```yaml\n{to_yaml(config)}```", start)
        self._writer.add_custom_scalars(_layout(mario))
        # SummaryWriter.add_hparams would make a second run of them, below this one. The dashboard shows the
        # last value of these curves.
        metrics = dict.fromkeys(FINAL + (FINAL_MARIO if mario else ()))
        *begin, self._end = hparams(_hyper_parameters(config), metrics)  # type: ignore[no-untyped-call]
        for summary in begin:
            self._add(summary)
        self._writer.flush()

    def write(self, numbers: Mapping[str, float], histograms: Mapping[str, npt.NDArray[Any]], decisions: int) -> None:
        """One point of each curve, and one histogram of each array."""
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, decisions)
        for tag, values in histograms.items():
            self._writer.add_histogram(tag, values, decisions, bins=BINS)
        self._writer.flush()

    def close(self) -> None:
        """Mark the run as ended, flush and close."""
        self._add(self._end)
        self._writer.close()

    def _add(self, summary: Any) -> None:
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary)


class EvaluationBoard:
    """The TensorBoard events of a run's evaluations, over the run's decisions.

    In a run of its own below the run's, named eval: the files of two processes stay apart.
    """

    def __init__(self, directory: Path) -> None:
        self._writer = SummaryWriter(str(directory / "eval"))

    def write(self, figures: Mapping[str, Any], decisions: int) -> None:
        """One point of the curve of each figure that has one."""
        for tag, name in EVALUATION.items():
            if name in figures:
                self._writer.add_scalar(tag, figures[name], decisions)
        self._writer.flush()

    def show(self, gif: bytes, decisions: int) -> None:
        """A film of the best so far."""
        # What SummaryWriter.add_video writes; it would want moviepy for the same GIF.
        columns, rows = struct.unpack_from("<HH", gif, 6)
        image = Summary.Image(height=rows, width=columns, colorspace=3, encoded_image_string=gif)
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="eval/best", image=image)]), decisions)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


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
