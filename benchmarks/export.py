"""Export checkpoints as models: networks in half precision, with the settings that playing them needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from apex_zmq.config.settings import Addresses, Run, to_tree
from apex_zmq.rundir.checkpoint import load, save

EVALUATION = "evaluation.csv"  # beside an exported model, its figures


def export(source: Path | str, path: Path) -> None:
    """Write the settings and parameters that playing the checkpoint `source` needs; an evaluation beside is deleted."""
    checkpoint = load(source)
    defaults = {
        "run": to_tree(Run(seed=checkpoint.config["run"]["seed"])),
        "addresses": to_tree(Addresses()),
        "replay": checkpoint.config["replay"] | {"snapshot_dir": None},
    }
    half = {name: tensor.to(torch.float16) for name, tensor in checkpoint.played.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / EVALUATION).unlink(missing_ok=True)
    save(path, dataclasses.replace(checkpoint, tensors={"online": half}, config=checkpoint.config | defaults))
