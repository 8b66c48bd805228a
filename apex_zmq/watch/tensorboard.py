"""TensorBoard event files of a run: scalars, histograms, the layout of the charts, hyper-parameters."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from apex_zmq.config.loading import to_yaml
from apex_zmq.config.settings import Config, to_tree
from apex_zmq.envs.info import statistics_of
from apex_zmq.watch.archive import Buckets
from apex_zmq.watch.metrics import Metric, curves

log = logging.getLogger(__name__)

RETRY_S = 60.0  # from a failed write to the next attempt
BINS = 64  # of equal width, per histogram; TensorBoard displays fewer
Histogram = npt.NDArray[Any] | Buckets
# Prefixes of the settings that the page "HParams" compares.
HYPER_PARAMETERS = ("run.seed", "run.num_actors", "env.", "agent.", "actor.", "replay.", "learner.")


class _Events:
    """Writes events. If a write fails, points are dropped, an error is logged, and a new file is opened later."""

    def __init__(self, directory: Path, purge_step: int | None = None) -> None:
        self._directory = directory
        self._purge_step = purge_step
        self._writer: SummaryWriter | None = None
        self._retry_at = 0.0

    def write(self, add: Callable[[SummaryWriter], None]) -> None:
        """Call `add` with the writer, then flush."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
            add(self._writer)
            self._writer.flush()
            self._purge_step = None
        except OSError as error:
            # The writer's thread has ended, and readers stop at the truncated event: this file is unusable.
            log.error("cannot write TensorBoard events: %s; points are dropped for the next %g s", error, RETRY_S)
            self._writer, self._retry_at = None, time.monotonic() + RETRY_S

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self.write(SummaryWriter.close)


class Board:
    """TensorBoard events of a run, with decisions as the step.

    start: decisions so far. Points of an interrupted run beyond it are hidden, so that the curves of a resumed run
    continue without overlap.
    """

    def __init__(self, directory: Path, config: Config, start: int) -> None:
        shown = curves(statistics_of(config.env))
        self._events = _Events(directory, purge_step=start)
        # SummaryWriter.add_hparams would create a second run below this one. The dashboard shows the last values of
        # the curves listed in `metrics`.
        metrics = {curve.name: None for curve in shown if curve.final}
        *begin, self._end = hparams(_hyper_parameters(config), metrics)  # type: ignore[no-untyped-call]

        def add_header(writer: SummaryWriter) -> None:
            writer.add_text("config", f"```yaml\n{to_yaml(config)}```", start)
            writer.add_custom_scalars(_layout(shown))
            for summary in begin:
                _file_writer(writer).add_summary(summary)

        self._events.write(add_header)

    def write(self, numbers: Mapping[str, float], histograms: Mapping[str, Histogram], decisions: int) -> None:
        """Add a point to each curve, and a histogram of each array; those of `Buckets` are written as they are."""

        def add(writer: SummaryWriter) -> None:
            for tag, value in numbers.items():
                writer.add_scalar(tag, value, decisions)
            for tag, values in histograms.items():
                if isinstance(values, Buckets):
                    _add_buckets(writer, tag, values, decisions)
                else:
                    writer.add_histogram(tag, values, decisions, bins=BINS)

        self._events.write(add)

    def close(self) -> None:
        """Mark the session as ended, then close the file."""
        self._events.write(lambda writer: _file_writer(writer).add_summary(self._end))
        self._events.close()


class EvaluationBoard:
    """TensorBoard events of a run's evaluations, with the run's decisions as the step.

    They are written to the subdirectory `eval`, because two processes cannot write to one event file.
    """

    def __init__(self, directory: Path) -> None:
        self._events = _Events(directory / "eval")

    def write(self, figures: Mapping[str, Any], decisions: int) -> None:
        """Add a point for each figure that has a curve."""

        def add(writer: SummaryWriter) -> None:
            for curve in curves():
                if curve.figure in figures:
                    writer.add_scalar(curve.name, figures[curve.figure], decisions)

        self._events.write(add)

    def show(self, gif: bytes, decisions: int) -> None:
        """Add a film of the best evaluation so far. gif: content of a GIF file."""
        # The same event as SummaryWriter.add_video writes, which requires moviepy.
        columns, rows = struct.unpack_from("<HH", gif, 6)
        image = Summary.Image(height=rows, width=columns, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag="eval/best", image=image)])
        self._events.write(lambda writer: _file_writer(writer).add_summary(summary, decisions))

    def close(self) -> None:
        """Flush and close the file."""
        self._events.close()


def _add_buckets(writer: SummaryWriter, tag: str, buckets: Buckets, decisions: int) -> None:
    """Add a histogram whose moments are those of the buckets' centres."""
    counts = np.asarray(buckets.counts, np.float64)
    limits = buckets.width * np.arange(1, len(counts) + 1)
    centres = limits - buckets.width / 2
    writer.add_histogram_raw(
        tag,
        min=0.0,
        max=limits[-1],
        num=counts.sum(),
        sum=counts @ centres,
        sum_squares=counts @ centres**2,
        bucket_limits=limits.tolist(),
        bucket_counts=counts.tolist(),
        global_step=decisions,
    )


def _file_writer(writer: SummaryWriter) -> Any:
    assert writer.file_writer is not None
    return writer.file_writer


def _layout(shown: Iterable[Metric]) -> dict[str, dict[str, list[Any]]]:
    """Charts by category and title, as `SummaryWriter.add_custom_scalars` takes them; tags are regular expressions."""
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
        if name.startswith(HYPER_PARAMETERS) and name != "replay.snapshot_dir"
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
