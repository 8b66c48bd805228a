"""TensorBoard in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.screenshot import SIZE, find_chromium, screenshot

from ..conftest import ROOT, StartProgram

MARIO = str(ROOT / "configs" / "mario-cpu.yaml")
CHROMIUM = find_chromium()
LINES = (255, 112, 67)  # the colour of the first run
CHARTS = [(x, y, x + 330, y + 180) for y in (155, 460) for x in (386, 736, 1086)]  # the first category's, in pixels


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")
def test_charts_are_drawn(start: StartProgram, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    options = ("--num-actors", "1", "--max-updates", "400", "--run-dir", "run", "--set", "replay.min_size=500")
    train = start("train", "--config", MARIO, *options, "--set", "telemetry.log_interval_s=1")
    assert train.wait() == 0, train.output
    screenshot(CHROMIUM, tmp_path / "run", tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == SIZE
        page = picture.convert("RGB")
    drawn = [int((np.array(page.crop(chart)) == LINES).all(-1).any(0).sum()) for chart in CHARTS]
    assert min(drawn) > 25, drawn  # columns of pixels; the marker of a single point has nine
