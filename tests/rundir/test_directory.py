from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex_zmq.rundir import directory as rundir


def test_resume_uses_the_newest_run_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dates = ("mario-20260101-000000", "mario-20260102-000000", "mario-20260103-000000", "mario-2-20260104-000000")
    for day, name in enumerate(dates):
        run = Path("checkpoints") / name
        (run / "logs").mkdir(parents=True)
        if name != "mario-20260103-000000":  # ended before its learner had begun
            (run / "latest.safetensors").touch()
        os.utime(run, (day, day))
    assert rundir.choose(None, "mario", resume=True) == Path("checkpoints/mario-20260102-000000")
