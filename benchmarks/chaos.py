"""Kill processes of a run at random and check that it recovers: python -m benchmarks.chaos [--minutes 10] [--seed 0].

A real run of World 1-1 has two shards, two actors, a learner and an evaluator. Processes are killed with SIGKILL at
random, at least three a minute, and started again a second later. The exit code is 0 only if every process was killed
at least twice and worked again each time, updates continued after its last kill, no process ended by itself, and no
corrupted window reached the learner. `--keep DIR` keeps logs and run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster import Cluster, cluster

GAP_S = 15.0  # mean time between two kills; less in a short run
KILLS = 2  # minimum of each process
KILLING = 0.75  # share of the time in which processes are killed
PATIENCE_S = 180.0


@dataclass
class Kill:
    """One kill.

    updates: gradient steps before it. took_s: seconds until the new process worked; None: it has not yet. advanced:
    whether gradient steps followed.
    """

    name: str
    at: float
    updates: float
    took_s: float | None = None
    advanced: bool = False


def choose(running: Cluster, kills: list[Kill], rng: random.Random) -> str | None:
    """A random name among the working processes with the fewest kills; None: no process works."""
    counts = Counter(kill.name for kill in kills)
    working = [name for name, member in running.members.items() if member.works]
    fewest = min((counts[name] for name in working), default=0)
    return rng.choice([name for name in working if counts[name] == fewest]) if working else None


def chaos(running: Cluster, minutes: float, seed: int) -> tuple[list[Kill], dict[str, int], dict[str, int]]:
    """Kill processes, then wait until the last ones have recovered.

    Returns: the kills, and resident bytes by process at the start and at the end.
    """
    rng = random.Random(seed)
    _tick_until(running, lambda: running.all_work, PATIENCE_S)
    at_start = running.resident_bytes()
    begin = time.monotonic()
    mean_gap_s = min(GAP_S, 60 * minutes * KILLING / (KILLS * len(running.members)) * 0.9)
    kills, next_kill = list[Kill](), begin
    while (now := time.monotonic()) < begin + 60 * minutes:
        running.tick()
        _account(running, kills)
        if now < next_kill or now > begin + 60 * minutes * KILLING:
            continue
        if (victim := choose(running, kills, rng)) is not None:
            kills.append(Kill(victim, time.monotonic(), running.updates))
            running.kill(victim)
            print(f"{now - begin:6.1f} s  {victim} killed", file=sys.stderr, flush=True)
            next_kill = now + mean_gap_s * rng.uniform(0.5, 1.5)

    def settled() -> bool:
        _account(running, kills)
        return all(kill.took_s is not None and kill.advanced for kill in kills)

    _tick_until(running, settled, PATIENCE_S)
    return kills, at_start, running.resident_bytes()


def _account(running: Cluster, kills: list[Kill]) -> None:
    for kill in kills:
        if kill.took_s is None and running.members[kill.name].works:
            kill.took_s = time.monotonic() - kill.at
        kill.advanced = running.updates > kill.updates


def _tick_until(running: Cluster, done: Callable[[], bool], patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while not done() and time.monotonic() < until:
        running.tick()


def report(running: Cluster, kills: list[Kill], at_start: dict[str, int], at_end: dict[str, int]) -> bool:
    """Print the report; return whether the run survived."""
    well = not running.died
    print("| process | kills | recovered | median, s | worst, s | updates after its last kill | MB at start | at end |")
    print("|---|---|---|---|---|---|---|---|")
    for name in running.members:
        own = [kill for kill in kills if kill.name == name]
        took = [kill.took_s for kill in own if kill.took_s is not None]
        advanced = bool(own) and own[-1].advanced
        well &= len(own) >= KILLS and len(took) == len(own) and advanced
        middle, worst = (f"{statistics.median(took):.1f}", f"{max(took):.1f}") if took else ("", "")
        resident = " | ".join(f"{when.get(name, 0) / 1e6:.0f}" for when in (at_start, at_end))
        went_on = "yes" if advanced else "**no**"
        print(f"| {name} | {len(own)} | {len(took)} | {middle} | {worst} | {went_on} | {resident} |")
    actors, replays = ([m for n, m in running.members.items() if n.startswith(role)] for role in ("actor", "replay"))
    received, lost, refused, duplicate = (
        sum(member.total(f"segments_{what}") for member in replays)
        for what in ("received", "lost", "refused", "duplicate")
    )
    corrupted = running.members["learner"].total("train/corrupted_windows")
    well &= corrupted == 0
    sent = sum(member.total("segments") for member in actors)
    print(f"\nsegments sent      {sent:.0f}")
    print(f"         received  {received:.0f}")
    print(f"         lost      {lost:.0f}")
    print(f"         refused   {refused:.0f}")
    print(f"         duplicate {duplicate:.0f}")
    # A restarted shard does not know what its predecessor received, so it cannot count unread segments as lost.
    print(f"         unread    {sent - received - lost - refused:.0f}, on the way to a shard when it was killed")
    print(f"corrupted windows  {corrupted:.0f}")
    print(f"gradient steps     {running.updates:.0f}")
    print(f"resident memory    {sum(at_start.values()) / 1e6:.0f} MB at start, {sum(at_end.values()) / 1e6:.0f} at end")
    print("(as of each process's last status, 0.2 s old at most when it was killed)")
    for name, code in running.died:
        print(f"{name} ended by itself with code {code}")
    print("survived" if well else "NOT SURVIVED")
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="duration (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and times of kills (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="directory that keeps logs and run (default: none)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apex-chaos-") as temporary:
        with cluster(arguments.keep or Path(temporary)) as running:
            figures = chaos(running, arguments.minutes, arguments.seed)
        return 0 if report(running, *figures) else 1


if __name__ == "__main__":
    sys.exit(main())
