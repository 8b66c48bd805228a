"""One line of the benchmark table: ours beside a peer, measured in one run on one machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
PACKAGES = ("torch", "numpy", "numba", "pyzmq", "lz4", "msgspec", "stable-retro", "gym-super-mario-bros", "nes-py")
PEERS = (
    "dm-reverb",
    "tensorflow",
    "cpprb",
    "stable-baselines3",
    "gym-super-mario-bros",
    "nes-py",
    "gym",
    "opencv-python-headless",
)


@dataclass(frozen=True)
class Row:
    """A measured line.

    ours, peer: medians, in `unit`; peer None: unavailable.
    ratio: how many times better ours is than the peer; above 1 ours is better.
    target: the ratio that is the project's goal; None: no goal.
    met: whether the target is reached; None: no target or no peer.
    spread: smallest and largest of the rounds behind each median, and their number.
    details: further measurements by name.
    """

    id: str
    what: str
    ours: float
    peer: float | None
    ratio: float | None
    target: float | None
    unit: str
    spread: str = ""
    met: bool | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object that stands for this line in `results/latest.json`."""
        return {
            "id": self.id,
            "what": self.what,
            "ours": self.ours,
            "peer": self.peer,
            "ratio": self.ratio,
            "target": self.target,
            "met": self.met,
            "unit": self.unit,
            "command": f"python -m benchmarks.{self.id} --json",
            "spread": self.spread,
            "details": dict(self.details),
        }


def versus(
    id: str,
    what: str,
    ours: Sequence[float],
    peer: Sequence[float],
    target: float | None,
    unit: str,
    *,
    less_is_better: bool = False,
) -> Row:
    """A row from the figures of several rounds; an empty `peer` is unavailable."""
    our = statistics.median(ours)
    spread = f"ours {_spread(ours)}"
    if not peer:
        return Row(id, what, our, None, None, target, unit, spread)
    their = statistics.median(peer)
    ratio = their / our if less_is_better else our / their
    met = None if target is None else ratio >= target
    return Row(id, what, our, their, ratio, target, unit, f"{spread}; peer {_spread(peer)}", met)


def _spread(values: Sequence[float]) -> str:
    return f"{figure(min(values))} to {figure(max(values))} in {len(values)}"


def figure(value: float) -> str:
    """A number to four significant digits, without exponent: 78,840 or 0.01992."""
    return f"{float(f'{value:.4g}'):,.10g}"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| id | measurement | ours | peer | ratio | target | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        peer = "unavailable" if row.peer is None else f"{figure(row.peer)} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        target = "" if row.target is None else f"{row.target:,g}"
        met = "" if row.met is None else "yes" if row.met else "**no**"
        lines.append(f"| {row.id} | {row.what} | {figure(row.ours)} {row.unit} | {peer} | {ratio} | {target} | {met} |")
    return "\n".join(lines)


def main(measure: Callable[[], Sequence[Row]]) -> None:
    """Run one benchmark as a program: a table for people, `--json` for machines."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, one list of rows, instead of a table")
    arguments = parser.parse_args()
    rows = measure()
    print(json.dumps([row.as_json() for row in rows], indent=1) if arguments.json else table(rows))


def peer(module: str, *arguments: object) -> dict[str, Any] | None:
    """What a program under `benchmarks/peers/` prints, run with the peers' packages; None where they are missing."""
    if not PEERS_PYTHON.exists():
        return None
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "3"}
    command = [str(PEERS_PYTHON), "-m", f"benchmarks.peers.{module}", *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {ran.returncode}:\n{ran.stderr[-2000:]}")
    printed: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return printed


def machine() -> str:
    """The machine and the versions of the packages."""
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
