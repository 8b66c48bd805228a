"""Models of the game's stages: exported, evaluated by the real program, and evaluated again once exported anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_zmq.config import loading
from apex_zmq.rundir.checkpoint import save

from ..checkpoints import MARIO, untrained

publish = pytest.importorskip("benchmarks.publish")
csv_files = pytest.importorskip("benchmarks.csv_files")


def test_each_model_without_an_evaluation_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = tmp_path / "step-1.safetensors", publish.model_of("game-1-2", tmp_path)
    save(source, untrained(loading.replace(MARIO, {"env.stages": ["1-2"]})))
    publish.export(source, model)
    monkeypatch.setattr(publish, "STAGE_GAMES", [("fceumm", "noop", 5, 2)])
    publish.publish_game(tmp_path)  # runs bin/apex-eval --checkpoint DIRECTORY
    (row,) = csv_files.read_csv(model.parent / publish.EVALUATION)
    assert tuple(row) == publish.FIGURES
    assert [row[name] for name in ("protocol", "seed", "episodes", "mean_length")] == ["noop", "5", "2", "12.0"]

    monkeypatch.setattr(publish, "play", lambda *arguments: pytest.fail("evaluated again"))
    publish.publish_game(tmp_path)
    publish.export(source, model)  # anew
    assert not (model.parent / publish.EVALUATION).exists()
