"""Make a checkpoint ready to be given away: python -m benchmarks.publish CHECKPOINT models/NAME.

Keeps the network that evaluations play, in half precision, and the settings; leaves out all else, and what names the
machine.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from apex_zmq.checkpoint import BEST, load, save
from apex_zmq.config import Addresses, Run, to_tree


def main(source: str, directory: str) -> None:
    """Write `directory`/best.safetensors."""
    checkpoint = load(source)
    defaults = {"run": to_tree(Run(seed=checkpoint.config["run"]["seed"])), "addresses": to_tree(Addresses())}
    half = {name: tensor.to(torch.float16) for name, tensor in checkpoint.played.items()}
    path = Path(directory) / BEST
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, dataclasses.replace(checkpoint, tensors={"online": half}, config=checkpoint.config | defaults))


if __name__ == "__main__":
    main(*sys.argv[1:])
