"""Search for plays of the Mario stages, without learning: python -m benchmarks.search.

Writes tests/data/mario-plays.json: for each kind of play in `GOALS` the buttons of every frame from the stage's start,
by which tests check the rules on both emulators. nes-py takes buttons a frame earlier than FCEUmm and has its own frame
counter at the start of a stage (docs/CONFORMANCE.md); a play is kept only if it reaches its goal on both.

The search is that of Go-Explore's first phase (Ecoffet et al. 2021, arXiv 2004.12919): a state of each cell is kept,
and bursts of random actions begin from those tried least.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apex_zmq.config.settings import Env
from apex_zmq.envs import games, mario
from apex_zmq.envs.emulators import Emulator, FCEUmm, NESPy
from apex_zmq.envs.mario import Episode, Outcome

ROOT = Path(__file__).parents[1]
PLAYS = ROOT / "tests/data/mario-plays.json"
FRAME_COUNTER = 0x09
FRAME_SKIP, BURST = 4, 25
ACTIONS = (
    games.RIGHT,
    games.RIGHT | games.A,
    games.RIGHT | games.B,
    games.RIGHT | games.A | games.B,
    games.A,
    games.LEFT,
    games.DOWN,
)
ENV = Env()


class Goal(NamedTuple):
    """A kind of play. reached: judges the account after each decision."""

    stage: str
    reached: Callable[[Episode], bool]
    seed: int = 0


GOALS = {
    "pipe exit": Goal("1-2", lambda episode: episode.outcome is Outcome.CLEARED),
    "warp": Goal("1-2", lambda episode: episode.outcome is Outcome.WARPED),
    "water": Goal("2-2", lambda episode: episode.outcome is Outcome.CLEARED),
    "springboard": Goal("2-1", lambda episode: episode.outcome is Outcome.CLEARED),
    "loop": Goal("4-4", lambda episode: episode.looped),
}


@dataclass(slots=True)
class Node:
    """A cell's state, and the frames that led there from that of `parent`."""

    state: bytes
    episode: Episode
    parent: Node | None
    buttons: bytes
    tries: int = 0


def step(machine: Emulator, episode: Episode, buttons: int) -> tuple[Episode, bytes]:
    """Take a decision as lanes do; the account after it and the buttons of its frames."""
    readings, held = [], bytearray()
    for _ in range(FRAME_SKIP):
        machine.step(buttons)
        held.append(buttons)
        readings.append(mario.read(machine.ram))
        if mario.outcome(episode.start, readings[-1]) is not Outcome.PLAYING:
            return mario.advance(episode, readings, ENV), bytes(held)
    for reading in mario.wait(machine):
        held.append(0)
        readings.append(reading)
        if mario.outcome(episode.start, reading) is not Outcome.PLAYING:
            break
    return mario.advance(episode, readings, ENV), bytes(held)


def search(machine: FCEUmm, goal: Goal, counter: int, decisions: int) -> bytes | None:
    """Buttons of a play that reaches a goal, one per frame; None: not found within as many decisions."""
    rng = np.random.default_rng(goal.seed)
    machine.load_state(mario.start_state(machine, goal.stage).state)
    machine.ram[FRAME_COUNTER] = counter
    machine.step(0)
    episode = mario.begin(mario.read(machine.ram))
    root = Node(machine.save_state(), episode, None, b"\0")
    cells: dict[Any, Node] = {mario.cell(machine.ram): root}
    while decisions > 0:
        nodes = list(cells.values())
        weights = np.array([1 / np.sqrt(node.tries + 1) for node in nodes])
        node = nodes[rng.choice(len(nodes), p=weights / weights.sum())]
        node.tries += 1
        machine.load_state(node.state)
        episode, held = node.episode, b""
        action, repeats = 0, 0
        for _ in range(BURST):
            if repeats == 0:
                action, repeats = ACTIONS[rng.integers(len(ACTIONS))], int(min(rng.zipf(2.0), 12))
            repeats -= 1
            decisions -= 1
            episode, buttons = step(machine, episode, action)
            held += buttons
            if goal.reached(episode):
                return b"".join(reversed([held, *(each.buttons for each in ancestors(node))]))
            if episode.outcome is not Outcome.PLAYING:
                break
            cell = mario.cell(machine.ram)
            if cell not in cells:
                node = cells[cell] = Node(machine.save_state(), episode, node, held)
                held = b""
    return None


def ancestors(node: Node | None) -> list[Node]:
    """A node and those before it, to the first."""
    return list(itertools.takewhile(bool, iterate(node)))


def iterate(node: Node | None) -> Any:
    while node is not None:
        yield node
        node = node.parent


def replay(machine: Emulator, buttons: bytes, goal: Goal) -> bool:
    """Whether a play reaches its goal on a machine that stands at the start of its stage."""
    episode = mario.begin(mario.read(machine.ram))
    for held in buttons:
        machine.step(held)
        episode = mario.advance(episode, [mario.read(machine.ram)], ENV)
        if goal.reached(episode):
            return True
        if episode.outcome is not Outcome.PLAYING:
            return False
    return False


def main(names: list[str], decisions: int) -> None:
    plays = json.loads(PLAYS.read_text()) if PLAYS.exists() else {}
    machine = FCEUmm()
    for name in names:
        goal = GOALS[name]
        own = NESPy()
        mario.play_to_start(own, goal.stage)
        counter = int(own.ram[FRAME_COUNTER])
        own.backup()
        for seed in itertools.count(goal.seed):
            found = search(machine, goal._replace(seed=seed), counter, decisions)
            own.restore()
            on_both = found is not None and replay(own, found[1:] + found[-1:], goal)
            print(f"{name}: seed {seed}, {len(found or ())} frames, on nes-py {on_both}", file=sys.stderr)
            if found is not None and on_both:
                plays[name] = {"stage": goal.stage, "counter": counter, "buttons": found.hex()}
                PLAYS.write_text(json.dumps(plays, indent=1) + "\n")
                break
        own.close()
    machine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="KIND", choices=[[], *GOALS], help=f"one of {', '.join(GOALS)}")
    parser.add_argument("--decisions", type=int, default=300_000, help="of a search (default: 300,000)")
    arguments = parser.parse_args()
    main(arguments.names or list(GOALS), arguments.decisions)
