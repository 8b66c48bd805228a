"""The README's film of all stages."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

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
    assert picture.shape == (224, 480, 3)
    tiles = picture.reshape(4, 56, 8, 60, 3).mean((1, 3))
    gray = tiles.max(-1) - tiles.min(-1) < 20
    assert np.argwhere(gray).tolist() == [[1, 1]]  # the sixth: the second stage of the second world
