"""Draw docs/images/scale.png from results/latest.json: python -m benchmarks.charts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.rows import ROOT

PANELS = {
    "accepted, transitions/s": "ours",
    "send to stored, ms (50% solid, 99% dashed)": "median_ms",
    "batches/s meanwhile": "batches_per_s",
}


def scale(lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw accepted rate, time to store and batches/s over connections, one colour per number of shards."""
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 3.6), layout="constrained")
    for shards, colour in ((1, "tab:blue"), (2, "tab:orange")):
        points = [line for line in lines if line["id"] == "scale" and line["details"]["shards"] == shards]
        connections = [point["details"]["connections"] for point in points]
        for axis, (title, name) in zip(axes, PANELS.items(), strict=True):
            axis.plot(
                connections,
                [point["details"].get(name, point["ours"]) for point in points],
                "o-",
                color=colour,
                label=f"{shards} shard{'s' * (shards > 1)}",
            )
            if name == "median_ms":
                axis.plot(connections, [point["details"]["late_ms"] for point in points], "--", color=colour)
            axis.set_title(title, fontsize=10)
            axis.set_xscale("log", base=2)
            axis.set_xlabel("connections")
            axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(ROOT / "docs/images/scale.png", dpi=90)


if __name__ == "__main__":
    scale(json.loads((ROOT / "benchmarks/results/latest.json").read_text())["rows"])
