"""Run every benchmark and write `results/latest.json` and `docs/BENCHMARKS.md`: python -m benchmarks [ID ...].

With ids only those are measured anew; the other lines stay as they were. `turnover` is measured only when it is named,
for `--minutes` (60).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks import charts
from benchmarks.rows import ROOT, Row, machine, table

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
    "snapshot",
    "turnover",
)
LONG = ("turnover",)
RESULTS = ROOT / "benchmarks/results/latest.json"
DOCUMENT = ROOT / "docs/BENCHMARKS.md"
HEAD = """# Benchmarks

Written by `make bench` (peers are installed by `make bench-peers`). Every ratio is of two medians taken in turn in one
run on one machine; a ratio above 1 means that ours is better. Absolute figures drift with the machine.
"""


def main(ids: list[str], minutes: str) -> None:
    lines: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for id in ids or [id for id in IDS if id not in LONG]:
        print(f"benchmarks.{id}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{id}", "--json", *(["--minutes", minutes] if id in LONG else [])]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        lines = [line for line in lines if line["id"] != id] + json.loads(ran.stdout)
        lines.sort(key=lambda line: IDS.index(line["id"]))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(lines, indent=1) + "\n")
    charts.scale(lines)
    rows = [Row(**{name: value for name, value in line.items() if name != "command"}) for line in lines]
    DOCUMENT.write_text(document(rows))
    print(table(rows))


def document(rows: list[Row]) -> str:
    spreads = "\n".join(f"| {row.id} | {row.what} | {row.spread} |" for row in rows)
    return (
        f"{HEAD}\n{machine()}\n\n{table(rows)}\n\n"
        "![Accepted rate, time to store and batches over connections](images/scale.png)\n\n"
        "## Spread\n\nSmallest to largest of the rounds behind each median.\n\n"
        f"| id | what | spread |\n|---|---|---|\n{spreads}\n\n"
        "Each line alone: `.venv/bin/python -m benchmarks.ID` (`--json` for machines).\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", choices=[[], *IDS], help=f"one of {', '.join(IDS)}")
    parser.add_argument("--minutes", default="60", help="how long `turnover` takes (default: 60)")
    arguments = parser.parse_args()
    main(arguments.ids, arguments.minutes)
