"""Measure the cost of sampling and inserting a transition as the store grows from 10^4 to 2x10^6, without sockets."""

from __future__ import annotations

import time

import numpy as np

from apex_zmq.config.settings import Config
from apex_zmq.replay.store import Store
from apex_zmq.types import Segment, Shipment
from benchmarks import mario_frames
from benchmarks.rows import Row, main, versus

SIZES = (10**4, 10**5, 10**6, 2 * 10**6)
BATCH = 512
TURNS = 300


def measure() -> list[Row]:
    config = Config()
    segments = mario_frames.segments(mario_frames.play(), config)
    inserts: dict[int, list[float]] = {}
    samples: dict[int, list[float]] = {}
    store = Store(
        capacity=SIZES[-1] + 10**5,
        arena_bytes=4 * 10**9,
        frame_window=config.env.frame_stack + config.agent.n_step,
        alpha=config.replay.alpha,
        epsilon=config.replay.epsilon,
        seed=0,
    )
    stored = 0
    for size in SIZES:
        while store.num_transitions < size:
            store.append(Shipment("synthetic", 0, 0, segments[stored % len(segments)]))
            stored += 1
        for _ in range(5):
            inserts.setdefault(size, []).append(_insert_us(store, segments[:64]))
            samples.setdefault(size, []).append(_sample_us(store))
    rows = []
    for size in SIZES[1:]:
        for what, costs in (("sample", samples), ("insert", inserts)):
            rows.append(
                versus(
                    "growth",
                    f"{what} a transition at {size:,} stored; peer: ours at {SIZES[0]:,}",
                    costs[size],
                    costs[SIZES[0]],
                    None,
                    "us",
                    less_is_better=True,
                )
            )
    return rows


def _sample_us(store: Store) -> float:
    begin = time.perf_counter()
    for _ in range(TURNS):
        sample = store.sample(BATCH)
        store.update(sample.keys, sample.priority.astype("f4"), np.zeros(BATCH, np.bool_))
    return 1e6 * (time.perf_counter() - begin) / (TURNS * BATCH)


def _insert_us(store: Store, segments: list[Segment]) -> float:
    begin = time.perf_counter()
    for segment in segments:
        store.append(Shipment("synthetic", 0, 0, segment))
    return 1e6 * (time.perf_counter() - begin) / sum(segment.num_transitions for segment in segments)


if __name__ == "__main__":
    main(measure)
