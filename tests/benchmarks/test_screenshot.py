"""TensorBoard in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.screenshot import SIZE, find_chromium, screenshot

from ..conftest import ROOT, StartProgram

MARIO = str(ROOT / "configs" / "mario-cpu.yaml")
CHROMIUM = find_chromium()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")
def test_charts_are_drawn(start: StartProgram, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    options = ("--num-actors", "1", "--max-updates", "60", "--run-dir", "run", "--set", "replay.min_size=500")
    train = start("train", "--config", MARIO, *options, "--set", "telemetry.log_interval_s=1")
    assert train.wait() == 0, train.output
    drawn = screenshot(CHROMIUM, tmp_path / "run", tmp_path / "page.png")
    assert drawn.keys() == {"return", "clear rate", "loss", "Q", "samples per insert", "rates, 1/s"}
    assert drawn["rates, 1/s"] == 3
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == SIZE
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100  # no empty page
