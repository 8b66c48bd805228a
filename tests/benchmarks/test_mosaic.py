"""The README's film of all stages."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from apex_zmq.rundir.checkpoint import save

from ..checkpoints import MARIO, untrained

mosaic = pytest.importorskip("benchmarks.mosaic")


def play(length: int, *, cleared: bool) -> object:
    """Red pictures, ever darker."""
    return mosaic.Play([Image.new("RGB", mosaic.TILE, (250 - 3 * index, 0, 0)) for index in range(length)], cleared)


def test_a_film_has_a_tile_per_stage_and_those_of_failures_are_gray() -> None:
    plays = [play(9, cleared=index != 5) if index else play(40, cleared=True) for index in range(32)]
    with Image.open(io.BytesIO(mosaic.film(plays, 4, 16))) as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
        picture = np.array(film.convert("RGB"), int)
    assert sum(durations) == pytest.approx(40 / 15 * 1000, rel=0.2)  # in real time
    assert picture.shape == (308, 656, 3)
    tiles = picture.reshape(4, 77, 8, 82, 3).mean((1, 3))
    gray = tiles.max(-1) - tiles.min(-1) < 20
    assert np.argwhere(gray).tolist() == [[1, 1]]  # the sixth: the second stage of the second world


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of 1-2 that has learned nothing, and none of 1-3; these are all stages."""
    model = mosaic.model_of("game-1-2", tmp_path)
    model.parent.mkdir()
    save(model, untrained(MARIO))
    monkeypatch.setattr(mosaic, "stages", lambda game: ("1-2", "1-3"))
    monkeypatch.setattr(mosaic, "TRIES", 2)
    return tmp_path


def test_plays_are_repeatable_and_failures_show_the_best_try(directory: Path) -> None:
    first, second = (mosaic.play(mosaic.model_of("game-1-2", directory)) for _ in range(2))
    assert not first.cleared
    assert len(first.pictures) == 13  # twelve decisions
    assert first.pictures[0].size == mosaic.TILE
    assert [each.tobytes() for each in first.pictures] == [each.tobytes() for each in second.pictures]
    assert first.pictures[0] != first.pictures[-1]


def test_a_film_that_is_too_large_is_not_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "game.gif"
    mosaic.main(path, directory)
    size = path.stat().st_size
    assert f"0 of 2 stages cleared, {size:,} bytes" in capsys.readouterr().out
    monkeypatch.setattr(mosaic, "MAX_BYTES", size // 100)
    with pytest.raises(SystemExit, match="is not written"):
        mosaic.main(directory / "another.gif", directory)
    assert not (directory / "another.gif").exists()
