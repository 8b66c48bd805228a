"""Run every benchmark and write `results/latest.json` and `docs/BENCHMARKS.md`: python -m benchmarks [ID ...].

With ids only those are measured; the other lines stay as they were. `turnover` is measured only if it is named, for
`--minutes` (60). `--document` measures nothing and writes the document from the stored results.
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

Written by `make bench`; `make bench-peers` installs the peers. Absolute figures vary with the machine; compare ratios.

* **ours**, **peer**: medians of several rounds, measured alternately in one run on one machine.
* **ratio**: how many times better ours is. Above 1 ours is better.
* **target**: the ratio that the project set as its goal; for `memory` the goal is a maximum in bytes.
"""


def main(ids: list[str], minutes: str) -> None:
    lines: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for id in ids or [id for id in IDS if id not in LONG]:
        print(f"benchmarks.{id}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{id}", "--json", *(["--minutes", minutes] if id in LONG else [])]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        lines = [line for line in lines if line["id"] != id] + json.loads(ran.stdout)
        lines.sort(key=lambda line: IDS.index(line["id"]))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": lines}, indent=1) + "\n")
    charts.scale(lines)
    DOCUMENT.write_text(document())


def document() -> str:
    """The document, from the stored results."""
    stored = json.loads(RESULTS.read_text())
    rows = [Row(**{name: value for name, value in line.items() if name != "command"}) for line in stored["rows"]]
    spreads = "\n".join(f"| {row.id} | {row.what} | {row.spread} |" for row in rows)
    return (
        f"{HEAD}\n{stored['machine']}\n\n{table(rows)}\n\n"
        "![Accepted rate, time to store and batches over connections](images/scale.png)\n\n"
        "## Spread\n\nSmallest and largest of the rounds behind each median, and their number.\n\n"
        f"| id | measurement | spread |\n|---|---|---|\n{spreads}\n\n"
        "To measure one line: `.venv/bin/python -m benchmarks.ID` (`--json` prints JSON).\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", choices=[[], *IDS], help=f"one of {', '.join(IDS)}")
    parser.add_argument("--minutes", default="60", help="how long `turnover` takes (default: 60)")
    parser.add_argument("--document", action="store_true", help="write the document from the stored results only")
    arguments = parser.parse_args()
    if arguments.document:
        DOCUMENT.write_text(document())
    else:
        main(arguments.ids, arguments.minutes)
        print(DOCUMENT.read_text())
