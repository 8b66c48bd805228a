from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from apex_zmq.rundir import directory as rundir
from apex_zmq.rundir.checkpoint import CheckpointStore

from ..checkpoints import CARTPOLE, untrained


def test_resume_uses_the_run_that_trained_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = {"mario-20260101-000000": 5, "mario-20260102-000000": 7, "mario-2-20260104-000000": 9}  # and resumed since
    for name, incarnation in begun.items():
        checkpoint = dataclasses.replace(untrained(CARTPOLE), learner_incarnation=incarnation)
        CheckpointStore(Path("checkpoints") / name, keep=0).save(checkpoint)
    Path("checkpoints/mario-20260103-000000/logs").mkdir(parents=True)  # ended before its learner had begun
    newest = Path("checkpoints/mario-20260102-000000")
    Path("checkpoints/mario-20260101-000000/film.gif").touch()  # by an evaluation
    shutil.copytree("checkpoints/mario-20260101-000000", "checkpoints/mario-20260105-000000")
    assert rundir.choose(None, "mario", resume=True) == newest
    (newest / "latest.safetensors").unlink()  # a link to the numbered one
    (newest / "latest.safetensors").write_bytes(b"damaged")
    assert rundir.choose(None, "mario", resume=True) == newest
