"""The results of a training run as arrays, and its milestones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_zmq.watch.stats import LOW_EPSILON
from benchmarks.csv_files import read_csv
from benchmarks.runs import FRESH_SEED, RESULTS, SELECTION_SEED, about_file, episodes_file, evaluations_file

SOLVED = 0.9  # clear rate of the noop episodes
WINDOW = 20  # low-epsilon episodes
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Episodes of a run in the order of their ends; float64 [E] each."""

    minutes: Floats
    decisions: Floats
    cleared: Floats
    max_x: Floats
    returns: Floats

    def until(self, minutes: float) -> Curve:
        """The episodes that had ended after this many minutes."""
        early = self.minutes <= minutes
        return Curve(*(getattr(self, each.name)[early] for each in fields(self)))


@dataclass(frozen=True)
class Result:
    """A run with its results.

    about: NAME.json. all: every episode. low: those of lanes with epsilon 0.01 or less; of all lanes for PPO and for
    runs without an epsilon ladder. evaluations: rows of NAME-eval.csv.gz.
    """

    about: dict[str, Any]
    all: Curve
    low: Curve
    evaluations: list[dict[str, str]]

    def selection(self) -> list[dict[str, str]]:
        """The evaluations on the selection seed, in the order of training."""
        return [row for row in self.evaluations if row["seed"] == str(SELECTION_SEED)]

    def fresh(self, protocol: str) -> dict[str, str]:
        """The evaluation of the best checkpoint on fresh seeds."""
        rows = self.evaluations
        return next(row for row in rows if row["seed"] == str(FRESH_SEED) and row["protocol"] == protocol)

    def until(self, minutes: float) -> Result:
        """The run as it stood after this many minutes; a run that is cut has no evaluations on fresh seeds."""
        if self.about["budget_minutes"] <= minutes:
            return self
        rows = [row for row in self.selection() if float(row["minutes"]) <= minutes]
        return Result(self.about, self.all.until(minutes), self.low.until(minutes), rows)


def read(name: str, directory: Path = RESULTS) -> Result:
    """Read the results of a run."""
    rows, evaluations = read_csv(episodes_file(name, directory)), read_csv(evaluations_file(name, directory))
    epsilons = [float(row["epsilon"] or 0) for row in rows]
    bound = max(LOW_EPSILON, min(epsilons))  # without a ladder all lanes count
    low = [row for row, epsilon in zip(rows, epsilons, strict=True) if epsilon <= bound]
    return Result(json.loads(about_file(name, directory).read_text()), _curve(rows), _curve(low), evaluations)


def _curve(rows: Sequence[dict[str, str]]) -> Curve:
    names = ("minutes", "decisions", "cleared", "max_x", "return")
    return Curve(*(np.array([float(row.get(name, 0)) for row in rows]) for name in names))


def moving_mean(values: Floats, window: int) -> Floats:
    """Mean of the last `window` values up to each value, of fewer at the start: float64 [E] -> float64 [E]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    means: Floats = (sums[ends] - sums[begins]) / (ends - begins)
    return means


def first_clear(result: Result) -> tuple[float, float] | None:
    """Minutes and decisions until the first clear by any lane; None: not reached."""
    return first_of(result.all, result.all.cleared > 0)


def half_clear(result: Result) -> tuple[float, float] | None:
    """Minutes and decisions until half of the last 20 low-epsilon episodes had cleared; None: not reached."""
    curve = result.low
    return first_of(curve, (moving_mean(curve.cleared, WINDOW) >= 0.5) & (np.arange(len(curve.cleared)) >= WINDOW - 1))


def first_of(curve: Curve, mask: npt.NDArray[np.bool_]) -> tuple[float, float] | None:
    return (curve.minutes[mask][0], curve.decisions[mask][0]) if mask.any() else None


def solved(result: Result) -> tuple[float, float] | None:
    """Minutes and decisions of the first checkpoint that clears 90% under noop on the selection seed; None: none."""
    rows = (row for row in result.selection() if float(row["clear_rate"]) >= SOLVED)
    return next(((float(row["minutes"]), float(row["decisions"])) for row in rows), None)


def stage_of(result: Result) -> str:
    """The stage of a run on a single one."""
    stages: str = result.about["settings"]["env.stages"]
    return stages.strip("[]")
