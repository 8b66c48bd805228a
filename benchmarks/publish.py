"""Publish models: python -m benchmarks.publish (DIRECTORY CHECKPOINT [CHECKPOINT ...] | game).

The first form exports a checkpoint and evaluates it. Of several checkpoints, the one that clears most of 1,000 episodes
is exported; each takes four to six minutes on two cores. DIRECTORY/best.safetensors holds the network that evaluations
play, in half precision, and the settings without those that name the machine. The exported model is then evaluated, in
about ten minutes: DIRECTORY/evaluation.csv, from which `python -m benchmarks.results` makes the table of the model's
card.

The second form evaluates the models of the game's stages that `python -m benchmarks.learning` has exported since the
last time, on 401 episodes each. `python -m benchmarks.results` makes the table of their common card, models/README.md,
from their evaluation.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq.envs.games import MARIO, stages
from apex_zmq.rundir.checkpoint import BEST
from benchmarks.csv_files import write_csv
from benchmarks.export import EVALUATION, export
from benchmarks.learning import play
from benchmarks.runs import MODELS, model_of

CHOICE_SEEDS = range(40_000, 40_010)  # not used in training
SEEDS = range(70_000, 70_010)  # used neither in training nor for the choice of a checkpoint
FIGURES = ("emulator", "protocol", "seed", "episodes", "clear_rate", "mean_length", "mean_return", "mean_x")
Games = Sequence[tuple[str, str, int, int]]  # emulator, protocol, seed, episodes
GAMES: Games = [
    *(("fceumm", "noop", seed, 100) for seed in SEEDS),
    *(("nes-py", "noop", seed, 100) for seed in SEEDS[:3]),  # a fifth of FCEUmm's speed
    ("fceumm", "sticky", SEEDS[0], 100),
    ("fceumm", "greedy", SEEDS[0], 1),
    ("nes-py", "greedy", SEEDS[0], 1),
]
STAGE_GAMES: Games = [
    *(("fceumm", "noop", seed, 100) for seed in SEEDS[:3]),
    ("fceumm", "sticky", SEEDS[0], 100),
    ("fceumm", "greedy", SEEDS[0], 1),
]


def _evaluate(path: Path, emulator: str, protocol: str, seed: int, episodes: int) -> dict[str, Any]:
    program = ["bin/apex-eval", "--checkpoint", str(path), "--emulator", emulator]
    return {"emulator": emulator, **play(program, protocol, seed, episodes)}


def _clear_rate(candidate: str, pool: ThreadPoolExecutor) -> float:
    """Clear rate of a checkpoint under noop on the choice seeds."""
    rows = pool.map(lambda seed: _evaluate(Path(candidate), "fceumm", "noop", seed, 100), CHOICE_SEEDS)
    rate = float(np.mean([row["clear_rate"] for row in rows]))
    print(f"{rate:.3f} {candidate}", file=sys.stderr, flush=True)
    return rate


def _write_evaluation(directory: Path, games: Games, pool: ThreadPoolExecutor) -> None:
    rows = list(pool.map(lambda each: _evaluate(directory, *each), games))
    write_csv(directory / EVALUATION, FIGURES, rows)


def publish(directory: Path, candidates: Sequence[str]) -> None:
    """Export the best of these checkpoints to a directory, and evaluate it."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        several = len(candidates) > 1
        best = max(candidates, key=lambda each: _clear_rate(each, pool)) if several else candidates[0]
        export(best, directory / BEST)
        _write_evaluation(directory, GAMES, pool)


def publish_game(models: Path = MODELS) -> None:
    """Evaluate each model of a stage of the game that has no evaluation."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        for path in (model_of(f"game-{stage}", models) for stage in stages(MARIO)):
            if path.is_file() and not (path.parent / EVALUATION).exists():
                print(path.parent.name, file=sys.stderr, flush=True)
                _write_evaluation(path.parent, STAGE_GAMES, pool)


if __name__ == "__main__":
    if sys.argv[1:] == ["game"]:
        publish_game()
    elif len(sys.argv) > 2:
        publish(Path(sys.argv[1]).resolve(), sys.argv[2:])
    else:
        sys.exit(__doc__)
