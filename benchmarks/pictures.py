"""Draw the curves of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.colors import TABLEAU_COLORS

from apex_zmq.envs.games import MARIO
from apex_zmq.envs.games import stages as stages_of
from benchmarks.curves import SOLVED, Curve, Floats, Result, moving_mean, stage_of

CURVE_WINDOW = 100
NAMES = {"apex": "Ape-X (ours)", "ppo": "PPO (SB3)", "dqn": "DQN (SB3)"}
COLOURS = {"apex": "tab:red", "ppo": "tab:blue", "dqn": "tab:green"}


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw clear rates over minutes and over decisions: lines from training, dots from evaluations."""
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained", sharey=True)
    for axis, (label, of) in zip(axes, (("minutes", "minutes"), ("million decisions", "decisions")), strict=True):
        scale = 1.0 if of == "minutes" else 1e-6
        named: set[str] = set()
        for result in results:
            algorithm = result.about["algorithm"]
            colour = COLOURS[algorithm]
            name = None if algorithm in named else NAMES[algorithm]
            named.add(algorithm)
            axis.plot(getattr(result.low, of) * scale, _rolling(result.low), color=colour, linewidth=1, label=name)
            points = result.selection()
            axis.plot(
                [float(row[of]) * scale for row in points],
                [float(row["clear_rate"]) for row in points],
                "o",
                color=colour,
                markersize=4,
            )
        axis.axhline(SOLVED, color="gray", linewidth=0.7, linestyle="--")
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("clear rate of World 1-1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(NAMES))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_ablations(base: Sequence[Result], results: Sequence[Result], path: Path) -> None:
    """Draw clear rates of the low-epsilon lanes over minutes: the recipe, and the recipe with each part off."""
    figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for index, result in enumerate(base):
        label = None if index else "the recipe"
        axis.plot(result.low.minutes, _rolling(result.low), color=COLOURS["apex"], linewidth=2, label=label)
    others = [colour for colour in TABLEAU_COLORS if colour != COLOURS["apex"]]
    for result, colour in zip(results, others, strict=False):
        label = result.about["name"].removeprefix("ablation-").replace("-", " ")
        axis.plot(result.low.minutes, _rolling(result.low), color=colour, linewidth=1, label=label)
    axis.set_xlabel("minutes")
    axis.set_ylabel("clear rate of World 1-1")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_game(results: Sequence[Result], path: Path) -> None:
    """Draw clear rates of the low-epsilon lanes over decisions, a panel per stage: a row per world, a line per seed."""
    figure, axes = pyplot.subplots(8, 4, figsize=(10, 14), layout="constrained", sharex=True, sharey=True)
    panels = dict(zip(stages_of(MARIO), axes.flat, strict=True))
    for stage, axis in panels.items():
        axis.set_title(stage, fontsize="small", loc="left", pad=2)
        axis.set_ylim(0, 1)
    for result in results:
        curve = result.low
        panels[stage_of(result)].plot(curve.decisions * 1e-6, _rolling(curve), color=COLOURS["apex"], linewidth=1)
    axes[0, 0].set_xlim(left=0)
    figure.supxlabel("million decisions")
    figure.supylabel("clear rate of the low-epsilon lanes")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def _rolling(curve: Curve) -> Floats:
    return moving_mean(curve.cleared, CURVE_WINDOW)
