"""Make a checkpoint ready to be given away: python -m benchmarks.publish CHECKPOINT models/NAME.

DIRECTORY/best.safetensors keeps the network that evaluations play, in half precision, and the settings; it leaves out
all else, and what names the machine. What is left is then evaluated, about ten minutes on two cores:
DIRECTORY/evaluation.csv, from which `python -m benchmarks.results` makes the table of its card.
"""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from apex_zmq.checkpoint import BEST, load, save
from apex_zmq.config import Addresses, Run, to_tree
from benchmarks.learning import play, write_csv

SEEDS = range(50_000, 50_010)  # neither training nor the choice of a checkpoint has seen them
FIGURES = ("emulator", "protocol", "seed", "episodes", "clear_rate", "mean_length", "mean_return", "mean_x")


# emulator, protocol, seed, episodes
GAMES = [
    *(("fceumm", "noop", seed, 100) for seed in SEEDS),
    *(("nes-py", "noop", seed, 100) for seed in SEEDS[:3]),  # it has a fifth of the other's speed
    ("fceumm", "sticky", SEEDS[0], 100),
    ("fceumm", "greedy", SEEDS[0], 1),
    ("nes-py", "greedy", SEEDS[0], 1),
]


def lighten(source: str, path: Path) -> None:
    """Write what is needed to play the checkpoint `source`."""
    checkpoint = load(source)
    defaults = {"run": to_tree(Run(seed=checkpoint.config["run"]["seed"])), "addresses": to_tree(Addresses())}
    half = {name: tensor.to(torch.float16) for name, tensor in checkpoint.played.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, dataclasses.replace(checkpoint, tensors={"online": half}, config=checkpoint.config | defaults))


def _evaluate(path: Path, emulator: str, protocol: str, seed: int, episodes: int) -> dict[str, Any]:
    program = ["bin/apex-eval", "--checkpoint", str(path), "--emulator", emulator]
    return {"emulator": emulator, **play(program, protocol, seed, episodes)}


def main(source: str, directory: str) -> None:
    path = Path(directory).resolve() / BEST
    lighten(source, path)
    with ThreadPoolExecutor(max_workers=2) as pool:
        rows = list(pool.map(lambda games: _evaluate(path, *games), GAMES))
    write_csv(path.parent / "evaluation.csv", FIGURES, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
