"""Batches on which a gradient step failed, saved in the run directory for inspection."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from apex_zmq.roles.learner.feeder import DecodedBatch
from apex_zmq.rundir.files import replacing
from apex_zmq.types import COLUMNS, Float32s

log = logging.getLogger(__name__)

DIRECTORY = "bad-batches"
KEPT = 10  # files of each rank, the newest


def save(directory: Path, update: int, decoded: DecodedBatch, weights: Float32s) -> None:
    """Write `update-<update>-rank-<rank>-shard-<shard>-<number>.npz`: the columns of `TRANSITION`, keys, priorities,
    windows, broken rows and weights.

    Keep only the newest `KEPT` files of a rank. If the file cannot be written, log an error.

    Args:
        directory: the run directory.
        update: number of gradient steps of the run before the failed one.
        decoded: the batch, with its windows.
        weights: float32 [B], importance weights.
    """
    batch, sample = decoded.batch, decoded.batch.sample
    name = f"update-{update:09d}-rank-{batch.rank}-shard-{batch.shard}-{batch.number}.npz"
    path = directory / DIRECTORY / name
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                keys=sample.keys,
                priority=sample.priority,
                **{name: sample.transitions[name] for name in COLUMNS},
                windows=decoded.windows,
                broken=decoded.broken,
                weights=weights,
            )
        own = path.parent.glob(f"*-rank-{batch.rank}-*.npz")
        for old in sorted(own, key=lambda found: (found.stat().st_mtime_ns, found.name))[:-KEPT]:
            old.unlink()
    except OSError as error:
        log.error("%s not saved, training continues: %s", path, error)
    else:
        log.error("failed batch saved in %s", path)
