"""The TensorBoard events of a run: curves, histograms, their arrangement, hyper-parameters."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from apex_zmq.config.loading import to_yaml
from apex_zmq.config.settings import Config, to_tree
from apex_zmq.envs.info import statistics_of
from apex_zmq.watch.metrics import Metric, curves

log = logging.getLogger(__name__)

RETRY_S = 60.0
BINS = 64  # of a histogram, of equal width; TensorBoard shows fewer
COMPARED = ("run.seed", "run.num_actors", "env.", "agent.", "actor.", "replay.", "learner.")  # hyper-parameters


class _Events:
    """Writes events. If the disk is full, points are dropped, an error is logged, and a new file is tried later."""

    def __init__(self, directory: Path, purge_step: int | None = None) -> None:
        self._directory = directory
        self._purge_step = purge_step
        self._writer: SummaryWriter | None = None
        self._retry_at = 0.0

    def write(self, add: Callable[[SummaryWriter], None]) -> None:
        """Call `add` with the writer, and flush."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
            add(self._writer)
            self._writer.flush()
            self._purge_step = None
        except OSError as error:
            # The writer's thread has ended, and readers stop at the truncated event.
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
        shown = curves(statistics_of(config.env))
        self._events = _Events(directory, purge_step=start)
        # SummaryWriter.add_hparams would make a second run of them, below this one. The dashboard shows the
        # last value of these curves.
        metrics = {curve.name: None for curve in shown if curve.final}
        *begin, self._end = hparams(_hyper_parameters(config), metrics)  # type: ignore[no-untyped-call]

        def introduce(writer: SummaryWriter) -> None:
            writer.add_text("config", f"```yaml\n{to_yaml(config)}```", start)
            writer.add_custom_scalars(_layout(shown))
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
            for curve in curves():
                if curve.figure in figures:
                    writer.add_scalar(curve.name, figures[curve.figure], decisions)

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


def _layout(shown: Iterable[Metric]) -> dict[str, dict[str, list[Any]]]:
    """The charts of curves for `SummaryWriter.add_custom_scalars`; tags are patterns that match from the start."""
    layout: dict[str, dict[str, list[Any]]] = {}
    for curve in shown:
        if curve.chart is not None:
            category, title = curve.chart
            chart = layout.setdefault(category, {}).setdefault(title, ["Multiline", []])
            chart[1].append(f"{curve.name.replace('*', '.*')}$")
    return layout


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
