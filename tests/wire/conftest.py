from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apex_zmq.replay.store import Store
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.types import Batch, FrameSpec, PriorityUpdate, Shipment
from apex_zmq.wire.body import Body, Parts, encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import (
    decode_batch,
    decode_priorities,
    decode_segment,
    encode_batch,
    encode_priorities,
    encode_segment,
)
from apex_zmq.wire.messages import (
    Bye,
    Episode,
    Heartbeat,
    Hello,
    Parameters,
    Refusal,
    StageArchive,
    Status,
    decode_bye,
    decode_heartbeat,
    decode_hello,
    decode_parameters,
    decode_relayed_status,
    decode_status,
    make_tensors,
)

N_STEP = 3
NUM_ACTIONS = 7
SIGNATURE = "0123456789abcdef"
FRAMES = {"lz4": FrameSpec((12, 10), "uint8", 4), "raw": FrameSpec((5,), "float32", 2)}


def play(frame: FrameSpec) -> Shipment:
    """What an actor ships after one long episode, one of a single step and one that was cut off."""
    rng = np.random.default_rng(1)

    def see() -> Any:
        if frame.dtype == "uint8":
            return rng.integers(0, 4, frame.shape).astype(np.uint8)
        return rng.normal(size=frame.shape).astype(np.float32)

    builder = SegmentBuilder(frame, N_STEP, 0.9, 64)
    for length, terminated in ((9, True), (1, True), (6, False)):
        builder.reset(frame.observation_of(see()))
        for t in range(length):
            last = t == length - 1
            action, q, reward = int(rng.integers(NUM_ACTIONS)), float(rng.normal()), float(rng.normal())
            builder.step(action, q, see(), reward, last and terminated, last and not terminated)
            builder.bootstrap(float(rng.normal()))
    segment = builder.take(flush=True)
    assert segment is not None
    return Shipment("actor-7", 2**62, 41, segment)


def deal(shipment: Shipment) -> Batch:
    """What a shard that holds only this segment deals."""
    window = shipment.segment.frame.stack + N_STEP
    store = Store(capacity=64, arena_bytes=1 << 20, frame_window=window, alpha=0.6, epsilon=0.01, seed=0)
    store.append(shipment)
    return Batch(
        learner_incarnation=1_700_000_000_000_000_000,
        rank=0,
        shard=1,
        shard_incarnation=store.incarnation,
        number=5,
        sample=store.sample(24),
    )


@pytest.fixture(scope="session")
def signature() -> str:
    return SIGNATURE


@pytest.fixture(scope="session")
def shipments() -> dict[str, Shipment]:
    """By codec."""
    return {codec: play(frame) for codec, frame in FRAMES.items()}


@pytest.fixture(scope="session")
def batches(shipments: dict[str, Shipment]) -> dict[str, Batch]:
    """By codec."""
    return {codec: deal(shipment) for codec, shipment in shipments.items()}


@pytest.fixture(scope="session")
def update(batches: dict[str, Batch]) -> PriorityUpdate:
    batch = batches["lz4"]
    rows = len(batch.sample.keys)
    return PriorityUpdate(
        learner_incarnation=batch.learner_incarnation,
        rank=batch.rank,
        shard_incarnation=batch.shard_incarnation,
        acknowledged=batch.number,
        keys=batch.sample.keys,
        td_error=np.linspace(0, 3, rows).astype(np.float32),
        retired=np.arange(rows) % 5 == 2,
    )


@pytest.fixture(scope="session")
def bodies() -> dict[Kind, Body]:
    """The messages that are one struct each."""
    rng = np.random.default_rng(2)
    arrays = {"torso.weight": rng.normal(size=(3, 4)).astype(np.float32), "torso.bias": np.zeros(3, np.float32)}
    status = Status(
        role="actor",
        name="actor-7",
        host="host",
        pid=123,
        incarnation=2**62,
        start_time=1_600_000_000.0,
        time=1_700_000_000.5,
        progress_time=1_700_000_000.25,
        metrics={"decisions": 4096.0, "blocked_s": 0.5},
        episodes=(Episode(12.5, 300, 0.01, "1-1", {"max_x": 3161.0, "cleared": 1.0}), Episode(-3.0, 17, 0.4)),
        refusals=(Refusal("actor-8", 3, "segment of 0 frames"),),
        archive=(StageArchive("1-1", 128.0, (3, 2, 0, 1), (0, 0, 200, 0)), StageArchive("8-4", 256.0, (1,), (0,))),
    )
    return {
        Kind.HELLO: Hello("run-1", 2**60, 0, SIGNATURE),
        Kind.PARAMETERS: Parameters("run-1", 2**60, 8, 4000, "fedcba9876543210", SIGNATURE, make_tensors(arrays)),
        Kind.HEARTBEAT: Heartbeat("run-1", 2**60, 8, 4000),
        Kind.STATUS: status,
        Kind.RELAYED_STATUS: status,
        Kind.BYE: Bye("actor-7", 2**62, 42),
    }


@pytest.fixture(scope="session")
def valid(
    shipments: dict[str, Shipment], batches: dict[str, Batch], update: PriorityUpdate, bodies: dict[Kind, Body]
) -> dict[str, list[bytes]]:
    """The parts of a good message of each kind, by the kind's name; "/raw" marks vectors."""
    messages = {
        "SEGMENT": encode_segment(shipments["lz4"], SIGNATURE),
        "SEGMENT/raw": encode_segment(shipments["raw"], SIGNATURE),
        "BATCH": encode_batch(batches["lz4"]),
        "BATCH/raw": encode_batch(batches["raw"]),
        "PRIORITIES": encode_priorities(update),
    } | {kind.name: encode(kind, body) for kind, body in bodies.items()}
    return {name: [bytes(part) for part in parts] for name, parts in messages.items()}


@pytest.fixture(scope="session")
def decoders() -> dict[str, Callable[[Parts], Any]]:
    """What decodes the messages of `valid`."""
    return {
        "SEGMENT": lambda parts: decode_segment(parts, SIGNATURE, N_STEP),
        "SEGMENT/raw": lambda parts: decode_segment(parts, SIGNATURE, N_STEP),
        "BATCH": lambda parts: decode_batch(parts, FRAMES["lz4"], N_STEP),
        "BATCH/raw": lambda parts: decode_batch(parts, FRAMES["raw"], N_STEP),
        "PRIORITIES": decode_priorities,
        "HELLO": decode_hello,
        "PARAMETERS": decode_parameters,
        "HEARTBEAT": decode_heartbeat,
        "STATUS": decode_status,
        "RELAYED_STATUS": decode_relayed_status,
        "BYE": decode_bye,
    }
