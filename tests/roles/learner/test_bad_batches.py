"""Batches on which a step failed, in the run directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from apex_zmq.roles.learner import bad_batches
from apex_zmq.roles.learner.bad_batches import DIRECTORY, KEPT
from apex_zmq.roles.learner.feeder import DecodedBatch
from apex_zmq.types import COLUMNS

from .dealt import N_STEP, WIDTH, dealt

ROWS = 3
WEIGHTS = np.arange(ROWS, dtype=np.float32)


def decoded(number: int = 0, rank: int = 0) -> DecodedBatch:
    batch = dataclasses.replace(dealt(ROWS, incarnation=1, number=number), rank=rank)
    windows = np.frombuffer(batch.sample.frames, "<f4").reshape(ROWS, 1 + N_STEP, WIDTH)
    return DecodedBatch(batch, windows, np.arange(ROWS) == 1)


def test_file_holds_all_inputs_of_the_step(tmp_path: Path) -> None:
    kept = decoded(number=9)
    bad_batches.save(tmp_path, 17, kept, WEIGHTS)
    (path,) = (tmp_path / DIRECTORY).iterdir()
    assert path.name == "update-000000017-rank-0-shard-0-9.npz"
    sample = kept.batch.sample
    expected = {name: sample.transitions[name] for name in COLUMNS} | {
        "keys": sample.keys,
        "priority": sample.priority,
        "windows": kept.windows,
        "broken": kept.broken,
        "weights": WEIGHTS,
    }
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(file[name], array, strict=True)


def test_newest_files_of_each_rank_are_kept(tmp_path: Path) -> None:
    bad_batches.save(tmp_path, 0, decoded(rank=1), WEIGHTS)
    for update in range(KEPT + 2):
        bad_batches.save(tmp_path, update, decoded(number=update), WEIGHTS)
    names = sorted(path.name for path in (tmp_path / DIRECTORY).iterdir())
    own = [f"update-{update:09d}-rank-0-shard-0-{update}.npz" for update in range(2, KEPT + 2)]
    assert names == sorted(["update-000000000-rank-1-shard-0-0.npz", *own])


def test_failed_write_is_logged_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DIRECTORY).write_text("in the way")
    bad_batches.save(tmp_path, 3, decoded(), WEIGHTS)
    assert "not saved, training continues" in caplog.text
