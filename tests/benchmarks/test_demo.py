"""`make demo` in small: the driver's real run, curve, film and look at the roles."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ..conftest import ROOT


@pytest.mark.long
def test_demo_writes_learning_curve_film_and_role_table(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "benchmarks.demo", str(tmp_path / "demo"), "--minutes", "0.5"]
    demo = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert demo.returncode == 0, demo.stdout
    paths = dict(re.findall(r"^(learning curve|film|the roles|the run) +(\S+?),?(?: |$)", demo.stdout, re.MULTILINE))
    with Image.open(paths["learning curve"]) as picture:
        assert len(picture.convert("RGB").resize((80, 45)).getcolors(80 * 45) or []) > 20  # something is drawn
    assert Path(paths["film"]).read_bytes()[4:8] == b"ftyp"
    shown = Path(paths["the roles"]).read_text()
    assert all(role in shown for role in ("actor", "replay", "learner"))
    assert shown in demo.stdout
    assert (Path(paths["the run"]) / "latest.safetensors").is_file()
    assert re.search(r"[1-9][\d,]* decisions in \d+ episodes, \d", demo.stdout)
