"""Run every benchmark and write `results/latest.json` and `docs/BENCHMARKS.md`: python -m benchmarks [ID ...].

With ids only those are measured anew; the other lines stay as they were.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import PEERS_PYTHON, ROOT, Row, table

IDS = (
    "replay_to_learner",
    "replay_to_learner_while_inserting",
    "inserts",
    "priorities",
    "memory",
    "actor_overhead",
    "actor_vs_gym",
    "learner_feed",
    "scale",
    "parameters",
    "growth",
)
RESULTS = ROOT / "benchmarks/results/latest.json"
DOCUMENT = ROOT / "docs/BENCHMARKS.md"
PACKAGES = ("torch", "numpy", "numba", "pyzmq", "lz4", "msgspec", "stable-retro", "gym-super-mario-bros", "nes-py")
PEERS = ("dm-reverb", "tensorflow", "cpprb", "gym-super-mario-bros", "nes-py", "gym", "opencv-python-headless")
HEAD = """# Benchmarks

Written by `make bench` (peers are installed by `make bench-peers`). Every ratio is of two medians taken in turn in one
run on one machine; a ratio above 1 means that ours is better. Absolute figures drift with the machine.
"""


def main(ids: list[str]) -> None:
    lines: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if ids and RESULTS.exists() else []
    for id in ids or IDS:
        print(f"benchmarks.{id}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{id}", "--json"]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        lines = [line for line in lines if line["id"] != id] + json.loads(ran.stdout)
    lines.sort(key=lambda line: IDS.index(line["id"]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(lines, indent=1) + "\n")
    rows = [Row(**{name: value for name, value in line.items() if name != "command"}) for line in lines]
    DOCUMENT.write_text(document(rows))
    print(table(rows))


def document(rows: list[Row]) -> str:
    spreads = "\n".join(f"| {row.id} | {row.what} | {row.spread} |" for row in rows)
    return (
        f"{HEAD}\n{machine()}\n\n{table(rows)}\n\n"
        "## Spread\n\nSmallest to largest of the rounds behind each median.\n\n"
        f"| id | what | spread |\n|---|---|---|\n{spreads}\n\n"
        "Each line alone: `.venv/bin/python -m benchmarks.ID` (`--json` for machines).\n"
    )


def machine() -> str:
    """What the figures were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    ours = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    text = f"Machine: {os.cpu_count()} cores, {model}. Python {platform.python_version()}: {ours}."
    if PEERS_PYTHON.exists():
        program = f"import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in {PEERS!r}))"
        peers = subprocess.run([str(PEERS_PYTHON), "-c", program], stdout=subprocess.PIPE, text=True, check=True)
        text += f" Peers: {peers.stdout.strip()}."
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
