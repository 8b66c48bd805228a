"""Make the tables and pictures of the training runs from docs/results/ and models/: python -m benchmarks.results.

The tables replace the text between `<!-- NAME -->` and `<!-- end -->` in docs/RESULTS.md, docs/lab/ and the models'
cards; the pictures are written to docs/images/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from apex_zmq.envs.games import MARIO
from apex_zmq.envs.games import stages as stages_of
from apex_zmq.play.evaluator import wilson
from benchmarks.csv_files import read_csv
from benchmarks.curves import Result, first_clear, first_of, half_clear, read, solved, stage_of
from benchmarks.export import EVALUATION
from benchmarks.pictures import NAMES, draw, draw_ablations, draw_game
from benchmarks.rows import ROOT
from benchmarks.runs import (
    MODELS,
    QUEUE,
    RESULTS,
    TRIAL_MINUTES,
    model_of,
)

DOCUMENTS = [ROOT / "docs/RESULTS.md", *sorted(ROOT.glob("docs/lab/*.md"))]
IMAGES = ROOT / "docs/images"
CARDS = sorted(MODELS.glob("*/README.md"))
GAME_CARD = MODELS / "README.md"
EARLY = (200_000, 300_000)  # decisions; clear rates of this window do not depend on the machine's speed
COMPARED_MINUTES = {group: TRIAL_MINUTES[group] for group in ("ablation", "sweep", "fine-tuning")} | {
    "quantiles": 25.0
}  # longer runs are cut to so many minutes for their table
MARKED = re.compile(r"(<!-- (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
GAME_CHART = "![Clear rates of the low-epsilon lanes over decisions, stage by stage](images/game.png)"


def _when(moment: tuple[float, float] | None) -> str:
    return "not reached" if moment is None else f"{moment[0]:.1f} min, {moment[1] / 1000:,.0f}k"


def _rate(row: dict[str, str]) -> str:
    rate, count = float(row["clear_rate"]), int(row["episodes"])
    if count == 1:
        return f"{rate:.0f} of 1"
    low, high = wilson(rate, count)
    return f"{rate:.2f} ({low:.2f} to {high:.2f})"


def headline(results: Sequence[Result]) -> str:
    """Table of headline runs and peers; algorithms with several seeds have a row of medians."""
    lines = [
        "| | seed | minutes | decisions/s | first clear | half of 20 clear | 90% under noop | noop | sticky | greedy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    moments: tuple[Callable[[Result], tuple[float, float] | None], ...] = (first_clear, half_clear, solved)
    for algorithm, name in NAMES.items():
        own = [result for result in results if result.about["algorithm"] == algorithm]
        for result in own:
            minutes = result.all.minutes[-1]
            rates = [_rate(result.fresh(protocol)) for protocol in ("noop", "sticky", "greedy")]
            cells = [
                name,
                result.about["seed"],
                f"{minutes:.0f}",
                f"{result.all.decisions[-1] / minutes / 60:.0f}",
                *(_when(moment(result)) for moment in moments),
                *rates,
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        if len(own) > 1:
            medians = [_when(_median([moment(result) for result in own])) for moment in moments]
            lines.append(f"| **{name}, median** | | | | {' | '.join(f'**{cell}**' for cell in medians)} | | | |")
    return "\n".join(lines)


def stages(results: Sequence[Result]) -> str:
    """Table of runs on other stages, with evaluations of their best checkpoints on fresh seeds."""
    lines = [
        "| stage | changed | minutes | decisions | first clear | best x | greedy | noop | sticky |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        settings = dict(result.about["settings"])
        stage = settings.pop("env.stages").strip("[]")
        cells = (
            stage,
            _changed(settings),
            f"{result.all.minutes[-1]:.0f}",
            f"{result.all.decisions[-1] / 1000:,.0f}k",
            _when(first_clear(result)),
            f"{max(result.all.max_x):,.0f}",
            *(_rate(result.fresh(protocol)) for protocol in ("greedy", "noop", "sticky")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def game(results: Sequence[Result]) -> str:
    """Table of the game's stages: milestones of the low-epsilon lanes, and the best checkpoint on fresh seeds."""
    lines = [
        "| stage | first clear | half of 20 clear | minutes | decisions | noop | sticky | greedy | best x |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        seed = result.about["seed"]
        cells = (
            stage_of(result) if seed == 1 else f"{stage_of(result)}, seed {seed}",
            _when(first_of(result.low, result.low.cleared > 0)),
            _when(half_clear(result)),
            f"{result.all.minutes[-1]:.0f}",
            f"{result.all.decisions[-1] / 1000:,.0f}k",
            *(_rate(result.fresh(protocol)) for protocol in ("noop", "sticky", "greedy")),
            f"{max(result.all.max_x):,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def atari(results: Sequence[Result]) -> str:
    """Table of Atari games: returns of real episodes, by any lane and by low-epsilon lanes in the last five minutes."""
    lines = ["| run | decisions | first point | best return | low-epsilon lanes at the end |", "|---|---|---|---|---|"]
    for result in results:
        late = result.low.minutes >= result.low.minutes[-1] - 5
        cells = (
            result.about["name"].removeprefix("atari-"),
            f"{result.all.decisions[-1] / 1000:,.0f}k",
            _when(first_of(result.all, result.all.returns > 0)),
            f"{max(result.all.returns):,.0f}",
            f"{result.low.returns[late].mean():,.1f} of {late.sum()}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _changed(settings: Mapping[str, str]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in settings.items()) or "nothing"


def evaluation(rows: Sequence[dict[str, str]]) -> str:
    """Table of a published model's evaluation (`benchmarks.publish`), by emulator and protocol."""
    lines = ["| emulator | protocol | episodes | clear rate | worst of a seed | mean x |", "|---|---|---|---|---|---|"]
    games: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        games.setdefault((row["emulator"], row["protocol"]), []).append(row)
    for (emulator, protocol), own in games.items():
        all_seeds = _pooled(own)
        worst = f"{min(float(row['clear_rate']) for row in own):.2f}" if len(own) > 1 else ""
        x = f"{float(all_seeds['mean_x']):,.0f}"
        cells = (emulator, protocol, all_seeds["episodes"], _rate(all_seeds), worst, x)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pooled(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """The figures of several evaluations over all of their episodes."""
    weights = [int(row["episodes"]) for row in rows]
    means = {name: np.average([float(row[name]) for row in rows], weights=weights) for name in ("clear_rate", "mean_x")}
    return {"episodes": f"{sum(weights)}", **{name: f"{mean}" for name, mean in means.items()}}


def models(results: Sequence[Result], directory: Path = MODELS) -> str:
    """Table of the models of the game's stages on FCEUmm, and the stages without a model, by reason."""
    lines = ["| stage | noop episodes | noop | sticky | greedy | mean x under noop |", "|---|---|---|---|---|---|"]
    first = {stage_of(result): result for result in results if result.about["seed"] == 1}
    failed, others = [], []
    for stage in stages_of(MARIO):
        own = model_of(f"game-{stage}", directory).parent
        if (own / EVALUATION).exists():
            lines.append(_model(stage, own))
        elif stage in first and not own.exists():
            failed.append(f"{stage} ({float(first[stage].fresh('noop')['clear_rate']):.2f})")
        else:
            others.append(stage)
    if failed:
        lines += ["", f"Stages without a model, with the clear rate of their best checkpoint: {', '.join(failed)}."]
    if others:
        lines += ["", f"Stages not trained or not evaluated yet: {', '.join(others)}."]
    return "\n".join(lines)


def _model(stage: str, directory: Path) -> str:
    """The row of a stage's model; a model with a card of its own is linked."""
    rows = [row for row in read_csv(directory / EVALUATION) if row["emulator"] == "fceumm"]
    noop, *others = (_pooled([row for row in rows if row["protocol"] == name]) for name in ("noop", "sticky", "greedy"))
    name = f"[{stage}]({directory.name}/README.md)" if (directory / "README.md").exists() else stage
    cells = (name, noop["episodes"], *map(_rate, (noop, *others)), f"{float(noop['mean_x']):,.0f}")
    return f"| {' | '.join(cells)} |"


def _median(values: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The median by minutes; None counts as the slowest, and of an even number the slower middle one is taken."""
    ordered = sorted(values, key=lambda value: math.inf if value is None else value[0])
    return ordered[len(ordered) // 2]


def comparison(results: Sequence[Result], group: str) -> str:
    """Table of trials: clear rates in the early window of decisions and in the last five minutes."""
    begin, end = EARLY
    lines = [
        f"| run | changed | decisions/s | first clear | {begin // 1000}k to {end // 1000}k | mean best x | clear rate "
        "| noop at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        curve = result.low
        early = (curve.decisions >= begin) & (curve.decisions < end)
        late = curve.minutes >= curve.minutes[-1] - 5
        evaluated = result.selection()
        cells = (
            result.about["name"].removeprefix(f"{group}-"),
            _changed(result.about["settings"]),
            f"{result.all.decisions[-1] / result.all.minutes[-1] / 60:.0f}",
            _when(first_clear(result)),
            f"{curve.cleared[early].mean():.2f}" if early.any() else "not reached",
            f"{curve.max_x[late].mean():,.0f}",
            f"{curve.cleared[late].mean():.2f} of {late.sum()}",
            _rate(evaluated[-1]) if evaluated else "not evaluated",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fill(document: str, tables: Mapping[str, str]) -> str:
    """The document with each table between the marks of its name; marks without a table keep their text."""

    def filled(match: re.Match[str]) -> str:
        table = tables.get(match["name"])
        return match[0] if table is None else f"{match[1]}\n{table}\n\n{match[3]}"

    return MARKED.sub(filled, document)


def read_all() -> list[Result]:
    """All results: runs of the queue in its order, then other runs by name."""
    queued = [run.name for run in QUEUE]
    found = {path.stem for path in RESULTS.glob("*.json")}
    return [read(name) for name in [*(name for name in queued if name in found), *sorted(found - set(queued))]]


def _of(results: Sequence[Result], *groups: str) -> list[Result]:
    return [result for result in results if result.about["group"] in groups]


def tables(results: Sequence[Result]) -> dict[str, str]:
    """Tables by the name of their marks, for each group of runs that has results."""
    made = {}
    if runs := _of(results, "headline", "peer"):
        made["headline"] = headline(runs)
    if runs := _of(results, "experiment"):
        made["experiment"] = comparison(runs, "experiment")
    if runs := _of(results, "atari"):
        made["atari"] = atari(runs)
    for group, minutes in COMPARED_MINUTES.items():
        if _of(results, group):
            made[group] = comparison([run.until(minutes) for run in _of(results, "headline", group)], group)
    if runs := _of(results, "earlier"):
        made["earlier"] = comparison(runs, "earlier")
    if runs := _of(results, "stage"):
        made["stage"] = stages(runs)
    if runs := _of(results, "game"):
        made["game"] = f"{game(runs)}\n\n{GAME_CHART}"
    return made


def card(path: Path) -> str:
    """A model's card with the table of its evaluation."""
    return fill(path.read_text(), {"evaluation": evaluation(read_csv(path.parent / EVALUATION))})


def game_card(results: Sequence[Result]) -> str:
    """The common card of the models of the game's stages, with their table."""
    return fill(GAME_CARD.read_text(), {"models": models(_of(results, "game"))})


def main() -> None:
    results = read_all()
    made = tables(results)
    for path in DOCUMENTS:
        path.write_text(fill(path.read_text(), made))
    for path in CARDS:
        path.write_text(card(path))
    GAME_CARD.write_text(game_card(results))
    if runs := _of(results, "headline", "peer"):
        draw(runs, IMAGES / "learning.png")
    if runs := _of(results, "ablation"):
        base = [run.until(TRIAL_MINUTES["ablation"]) for run in _of(results, "headline")]
        draw_ablations(base, runs, IMAGES / "ablations.png")
    if runs := _of(results, "game"):
        draw_game(runs, IMAGES / "game.png")


if __name__ == "__main__":
    main()
