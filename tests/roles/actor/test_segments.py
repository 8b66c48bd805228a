"""From an actor's steps to the tensors of a gradient step, over all real parts but the sockets.

A frame, reward or end that is wrong at the learner was made wrong on this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.agent.losses import split_windows
from apex_zmq.replay import record
from apex_zmq.replay.store import Store
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.types import Batch, Float32s, FrameSpec, Sample, Segment, Shipment
from apex_zmq.wire.checksums import corrupted_windows
from apex_zmq.wire.experience import decode_batch, decode_segment, encode_batch, encode_segment
from apex_zmq.wire.frames import decode_windows

SIGNATURE = "0123456789abcdef"
ACTOR = "actor-0"
ALPHA, EPSILON = 0.6, 0.01
BATCH_SIZE = 32
TERMINATED, TRUNCATED, UNFINISHED = "terminated", "truncated", "unfinished"
Frames = list[npt.NDArray[Any]]


@dataclass
class Episode:
    """All that a fake environment and network produced in one episode of m steps."""

    frames: Frames  # [m + 1], that of the reset first
    rewards: Float32s  # [m]
    q_taken: Float32s  # [m]
    next_values: Float32s  # [m]
    end: str

    def observation(self, time: int, stack: int) -> npt.NDArray[Any]:
        return np.stack([self.frames[max(0, time - stack + 1 + place)] for place in range(stack)])


@dataclass
class Expected:
    """One transition, computed step by step from its episode."""

    observation: npt.NDArray[Any]
    next_observation: npt.NDArray[Any]
    reward: float
    discount: float
    steps: int
    td_error: float


def make_episode(rng: np.random.Generator, spec: FrameSpec, length: int, end: str) -> Episode:
    def frame() -> npt.NDArray[Any]:
        if spec.dtype == "float32":
            return rng.normal(size=spec.shape).astype(np.float32)
        # Long runs and noise, so that the sizes of encoded frames differ widely.
        return np.sort(rng.integers(0, rng.integers(2, 257), spec.shape)).astype(np.uint8)

    numbers = rng.normal(size=(3, length)).astype(np.float32)
    return Episode([frame() for _ in range(length + 1)], numbers[0], numbers[1], numbers[2], end)


def reference(episode: Episode, stack: int, n: int, gamma: float) -> list[Expected]:
    """The transitions of an episode; those of its last steps too only where it was finished."""
    expected = []
    length = len(episode.rewards)
    for time in range(length if episode.end != UNFINISHED else length - n + 1):
        total, factor, now = 0.0, 1.0, time
        while now < length and now < time + n:
            total += factor * float(episode.rewards[now])
            factor *= gamma
            now += 1
        if now == length and episode.end == TERMINATED:
            factor = 0.0
        bootstrap = factor * float(episode.next_values[now - 1]) if factor else 0.0
        expected.append(
            Expected(
                observation=episode.observation(time, stack),
                next_observation=episode.observation(now, stack),
                reward=total,
                discount=factor,
                steps=now - time,
                td_error=abs(total + bootstrap - float(episode.q_taken[time])),
            )
        )
    return expected


def play(builder: SegmentBuilder, episodes: list[Episode]) -> list[Segment]:
    """Drive a builder as the actor does; each step's action is its serial number."""
    segments = []
    frame = builder._frame
    serial = 0
    builder.reset(frame.observation_of(episodes[0].frames[0]))
    for number, episode in enumerate(episodes):
        for time in range(len(episode.rewards)):
            is_last = time == len(episode.rewards) - 1
            builder.step(
                serial,
                float(episode.q_taken[time]),
                episode.frames[time + 1],
                float(episode.rewards[time]),
                is_last and episode.end == TERMINATED,
                is_last and episode.end == TRUNCATED,
            )
            serial += 1
            if is_last and number + 1 < len(episodes):
                builder.reset(frame.observation_of(episodes[number + 1].frames[0]))
            builder.bootstrap(float(episode.next_values[time]))
            while (segment := builder.take()) is not None:
                segments.append(segment)
    while (segment := builder.take(flush=True)) is not None:
        segments.append(segment)
    return segments


def on_the_wire(parts: Any) -> list[bytes]:
    return [bytes(part) for part in parts]


def deal(sample: Sample) -> list[bytes]:
    """A sample as the replay role ships it."""
    batch = Batch(learner_incarnation=1, rank=0, shard=0, shard_incarnation=2, number=3, sample=sample)
    return on_the_wire(encode_batch(batch))


def check_sample(store: Store, spec: FrameSpec, n: int, expected: list[Expected]) -> None:
    """Sample, ship, decode and split a batch, and compare every row with its reference."""
    sample = decode_batch(deal(store.sample(BATCH_SIZE)), spec, n).sample
    rows = sample.transitions
    # What stood in a recycled buffer must not show.
    windows = np.full((BATCH_SIZE, spec.stack + n, *spec.shape), 77, spec.dtype)
    assert not decode_windows(sample.frames, sample.frame_sizes, spec, windows).any()
    assert not corrupted_windows(sample.frames, sample.frame_sizes, rows["window_crc"]).any()
    split = split_windows(torch.from_numpy(windows), torch.from_numpy(rows["steps"].astype(np.int64)), spec.stack)
    observation, next_observation = (tensor.numpy() for tensor in split)
    for row, serial in enumerate(rows["action"]):
        wanted = expected[serial]
        assert sample.keys[row] == serial
        assert observation[row].tobytes() == wanted.observation.tobytes()
        assert next_observation[row].tobytes() == wanted.next_observation.tobytes()
    wanted_rows = [expected[serial] for serial in rows["action"]]
    np.testing.assert_array_equal(rows["steps"], [row.steps for row in wanted_rows])
    np.testing.assert_allclose(rows["reward"], [row.reward for row in wanted_rows], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows["discount"], [row.discount for row in wanted_rows], rtol=1e-6)
    np.testing.assert_allclose(rows["td_error"], [row.td_error for row in wanted_rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sample.priority, [(row.td_error + EPSILON) ** ALPHA for row in wanted_rows], rtol=1e-4)


image = st.builds(lambda shape, stack: FrameSpec(shape, "uint8", stack), st.just((6, 8)), st.integers(1, 4))
rgb = st.builds(lambda stack: FrameSpec((3, 4, 5), "uint8", stack), st.integers(1, 2))
vector = st.builds(lambda stack: FrameSpec((3,), "float32", stack), st.integers(1, 3))
outlines = st.lists(
    # One-step episodes are frequent, and some are longer than a segment.
    st.tuples(st.one_of(st.just(1), st.integers(1, 25)), st.sampled_from([TERMINATED, TRUNCATED])),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(
    spec=st.one_of(image, rgb, vector),
    outline=outlines,
    unfinished=st.integers(0, 8),
    n=st.integers(1, 5),
    extra_length=st.integers(0, 7),
    gamma=st.sampled_from([0.5, 0.99, 1.0]),
    spare=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_sampled_transitions_match_the_played_episodes(
    spec: FrameSpec,
    outline: list[tuple[int, str]],
    unfinished: int,
    n: int,
    extra_length: int,
    gamma: float,
    spare: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    episodes = [make_episode(rng, spec, length, end) for length, end in outline]
    episodes.append(make_episode(rng, spec, unfinished, UNFINISHED))
    expected = [transition for episode in episodes for transition in reference(episode, spec.stack, n, gamma)]
    length = n + extra_length
    segments = play(SegmentBuilder(spec, n, gamma, length), episodes)

    # Every step of every finished episode is in exactly one transition, and so are the others whose end is known.
    serials = np.concatenate([segment.transitions["action"] for segment in segments])
    np.testing.assert_array_equal(serials, np.arange(len(expected)))
    assert all(segment.num_transitions == length for segment in segments[:-1])
    assert 1 <= segments[-1].num_transitions <= length
    for segment in segments:  # no frame before the first observation or behind the last
        first, steps = segment.transitions["first"], segment.transitions["steps"]
        needed = first.astype(int) + steps + spec.stack
        assert (first.min(), needed.max()) == (0, len(segment.frame_sizes))
    shipped = np.concatenate([segment.transitions["td_error"] for segment in segments])
    np.testing.assert_allclose(shipped, [each.td_error for each in expected], rtol=1e-4, atol=1e-5)

    # Little more room than one segment needs, so that slots and bytes wrap.
    store = Store(
        capacity=length + spare,
        arena_bytes=max(map(record_bytes, segments)) + 64 * spare,
        frame_window=spec.stack + n,
        alpha=ALPHA,
        epsilon=EPSILON,
        seed=seed,
    )
    for sequence, segment in enumerate(segments):
        shipment = Shipment(ACTOR, 7, sequence, segment)
        store.append(decode_segment(on_the_wire(encode_segment(shipment, SIGNATURE)), SIGNATURE, n))
        check_sample(store, spec, n, expected)
    store.check_valid()


def record_bytes(segment: Segment) -> int:
    return record.size_of(segment.num_transitions, len(segment.frame_sizes), len(ACTOR), len(segment.frames))


def test_frames_are_stored_once_per_segment() -> None:
    spec = FrameSpec((6, 8), "uint8", 4)
    episode = make_episode(np.random.default_rng(0), spec, 30, TERMINATED)
    segments = play(SegmentBuilder(spec, 3, 0.99, length=10), [episode])
    # 10 transitions see the frames of 10 + n - 1 steps and the stack before the first of them.
    assert [len(segment.frame_sizes) for segment in segments] == [10 + 3 - 1 + 4, 10 + 3 - 1 + 4, 10 + 4]


def builder_after(steps: int) -> SegmentBuilder:
    builder = SegmentBuilder(FrameSpec((3,), "float32", 1), n_step=3, gamma=0.9, length=4)
    frame = np.zeros(3, np.float32)
    builder.reset(frame[None])
    for step in range(steps):
        builder.step(step, 0.0, frame, 1.0, False, False)
        builder.bootstrap(0.0)
    return builder


def test_a_segment_is_ready_once_all_its_transitions_are_complete() -> None:
    for steps in range(6):
        assert builder_after(steps).take() is None
        flushed = builder_after(steps).take(flush=True)
        assert (flushed.num_transitions if flushed else 0) == max(0, steps - 2)
    segment = builder_after(6).take()
    assert segment is not None
    assert segment.num_transitions == 4


def test_step_or_take_without_bootstrap_value_is_an_error() -> None:
    builder = SegmentBuilder(FrameSpec((3,), "float32", 1), n_step=1, gamma=0.9, length=2)
    frame = np.zeros(3, np.float32)
    builder.reset(frame[None])
    builder.step(0, 0.0, frame, 1.0, False, False)
    with pytest.raises(AssertionError, match="bootstrap"):
        builder.take(flush=True)
    with pytest.raises(AssertionError, match="bootstrap"):
        builder.step(0, 0.0, frame, 1.0, False, False)
