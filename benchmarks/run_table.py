"""A run's curves as a Markdown table over minutes: python -m benchmarks.run_table RUN_DIRECTORY [MINUTES]."""

from __future__ import annotations

import sys
from bisect import bisect_right

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLUMNS = {
    "decisions/s": ("time/decisions_per_s", "{:.0f}"),
    "updates": ("train/updates", "{:.0f}"),
    "updates/s": ("time/updates_per_s", "{:.1f}"),
    "samples/insert": ("replay/samples_per_insert", "{:.2f}"),
    "return, all lanes": ("rollout/ep_rew_mean", "{:.1f}"),
    "return, low-epsilon": ("rollout/low_epsilon/ep_rew_mean", "{:.1f}"),
    "mean best x, low-epsilon": ("rollout/low_epsilon/max_x_mean", "{:.0f}"),
    "clear rate, low-epsilon": ("rollout/low_epsilon/clear_rate", "{:.2f}"),
    "clears": ("rollout/clears", "{:.0f}"),
}


def main(directory: str, step_minutes: float) -> None:
    """Print one row per step: the last value before it; rates as means over the step."""
    accumulator = EventAccumulator(directory, size_guidance={"scalars": 0})
    accumulator.Reload()
    curves = {name: accumulator.Scalars(tag) for name, (tag, _) in COLUMNS.items()}
    first = min(events[0].wall_time for events in curves.values())
    last = max(events[-1].wall_time for events in curves.values())
    print("| minutes | decisions | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    until = first
    while until < last:
        since, until = until, min(until + 60 * step_minutes, last)
        row = [f"{(until - first) / 60:.0f}"]
        for index, (name, (_, form)) in enumerate(COLUMNS.items()):
            times = [event.wall_time for event in curves[name]]
            begin, end = bisect_right(times, since), bisect_right(times, until)
            if index == 0:
                row.append(f"{curves[name][end - 1].step}")
            values = [event.value for event in curves[name][begin:end]] if name.endswith("/s") else []
            if not values and end:
                values = [curves[name][end - 1].value]
            row.append(form.format(sum(values) / len(values)) if values else "")
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
