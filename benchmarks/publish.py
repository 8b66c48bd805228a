"""Export a checkpoint as a published model: python -m benchmarks.publish DIRECTORY CHECKPOINT [CHECKPOINT ...].

Of several checkpoints, the one that clears most of 1,000 episodes is exported; each takes four to six minutes on two
cores. DIRECTORY/best.safetensors holds the network that evaluations play, in half precision, and the settings without
those that name the machine. The exported model is then evaluated, in about ten minutes: DIRECTORY/evaluation.csv, from
which `python -m benchmarks.results` makes the table of the model's card.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq.rundir.checkpoint import BEST
from benchmarks.csv_files import write_csv
from benchmarks.export import export
from benchmarks.learning import play

CHOICE_SEEDS = range(40_000, 40_010)  # not used in training
SEEDS = range(70_000, 70_010)  # used neither in training nor for the choice of a checkpoint
FIGURES = ("emulator", "protocol", "seed", "episodes", "clear_rate", "mean_length", "mean_return", "mean_x")
# emulator, protocol, seed, episodes
GAMES = [
    *(("fceumm", "noop", seed, 100) for seed in SEEDS),
    *(("nes-py", "noop", seed, 100) for seed in SEEDS[:3]),  # a fifth of FCEUmm's speed
    ("fceumm", "sticky", SEEDS[0], 100),
    ("fceumm", "greedy", SEEDS[0], 1),
    ("nes-py", "greedy", SEEDS[0], 1),
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


def main(directory: str, *candidates: str) -> None:
    path = Path(directory).resolve() / BEST
    with ThreadPoolExecutor(max_workers=2) as pool:
        several = len(candidates) > 1
        export(max(candidates, key=lambda each: _clear_rate(each, pool)) if several else candidates[0], path)
        rows = list(pool.map(lambda games: _evaluate(path, *games), GAMES))
    write_csv(path.parent / "evaluation.csv", FIGURES, rows)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
