"""Send hostile messages of every kind to its decoder and to its consumer: python -m benchmarks.fuzz.

It prints a line per kind: inputs refused and accepted, crashes (any exception but a refusal, and any accepted value
that could do harm), inputs per second and peak memory. The exit code is 1 after a crash. A crash is shown with the
seed and number of its input: `--seed S --inputs N+1 --kinds KIND` reproduces it.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import lz4.block
import msgspec
import numpy as np
import numpy.typing as npt

from apex_zmq.replay.accounts import Accounts
from apex_zmq.replay.store import Store
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.types import Batch, FrameSpec, PriorityUpdate, Shipment
from apex_zmq.watch.stats import RunStats
from apex_zmq.wire.body import Parts, encode
from apex_zmq.wire.checksums import corrupted_windows, frame_crc
from apex_zmq.wire.codec import FLAG_LZ4, LIMITS, PRELUDE, PROTOCOL_VERSION, Kind, WireError, kind_of, unpack
from apex_zmq.wire.experience import (
    decode_batch,
    decode_priorities,
    decode_segment,
    encode_batch,
    encode_priorities,
    encode_segment,
)
from apex_zmq.wire.frames import decode_windows
from apex_zmq.wire.messages import (
    Bye,
    Episode,
    Heartbeat,
    Hello,
    Parameters,
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

INPUTS = 1_000_000  # per kind
N_STEP = 3
NUM_ACTIONS = 7
SIGNATURE = "0123456789abcdef"
FRAMES = {"": FrameSpec((12, 10), "uint8", 4), "/raw": FrameSpec((5,), "float32", 2)}
Message = list[bytes]

NUMBERS = [struct.pack("<f", x) for x in (float("nan"), float("inf"), -float("inf"), 3.4e38, -1.0, -0.0, 1e-45)]
NUMBERS += [struct.pack("<d", x) for x in (float("nan"), float("inf"), 1.7e308, 5e-324)]
NUMBERS += [b"\xff" * 4, b"\xff" * 8, bytes(4), bytes(8), b"\xff\xff\xff\x7f", b"\x80", b"\xff\xff"]
ANYTHING: list[Any] = [None, True, -1, 0, 1, 2**16, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 0.5, 1e308, -1e308]
ANYTHING += [float("nan"), float("inf"), "", "a", "uint8", "float16", "raw", "x" * 70, b"", bytes(4), bytes(4096)]
ANYTHING += [[], [1], [0, 0], [65536] * 3, [1 << 30] * 8, {}, {"a": 1}, [[]], {"metrics": {}}, "\x00\n\u2028"]


@dataclass
class Target:
    """A kind of message: a valid one, its decoder, and its consumer `take`, which raises on harmful values."""

    name: str
    valid: Message
    decode: Callable[[Parts], Any]
    take: Callable[[Any], None]

    def __post_init__(self) -> None:
        self.kind = kind_of(self.valid[0])
        self.raw = bytes(unpack(self.valid[0])[1])
        self.body: dict[str, Any] = msgspec.msgpack.decode(self.raw)


@dataclass
class Report:
    """Counts of a target's inputs by outcome, and tracebacks of crashes."""

    name: str
    refused: int = 0
    accepted: int = 0
    crashes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.refused + self.accepted + len(self.crashes)
        return (
            f"{self.name:15} {total:9} inputs  {self.refused:9} refused  {self.accepted:9} accepted  "
            f"{len(self.crashes)} crashes  {total / max(self.seconds, 1e-9):7.0f}/s  peak {peak_bytes() / 1e6:.0f} MB"
        )


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Valid messages and their consumers.


def play(frame: FrameSpec) -> Shipment:
    """Segments of an actor after three episodes."""
    rng = np.random.default_rng(1)

    def see() -> npt.NDArray[Any]:
        if frame.dtype == "uint8":
            return rng.integers(0, 4, frame.shape).astype(np.uint8)
        return rng.normal(size=frame.shape).astype(np.float32)

    builder = SegmentBuilder(frame, N_STEP, 0.9, 64)
    for length, terminated in ((9, True), (1, True), (6, False)):
        builder.reset(frame.observation_of(see()))
        for t in range(length):
            last = t == length - 1
            builder.step(int(rng.integers(NUM_ACTIONS)), 0.0, see(), 1.0, last and terminated, last and not terminated)
            builder.bootstrap(0.5)
    segment = builder.take(flush=True)
    assert segment is not None
    return Shipment("actor", 1, 0, segment)


def make_store(frame: FrameSpec) -> Store:
    window = frame.stack + N_STEP
    return Store(capacity=512, arena_bytes=1 << 20, frame_window=window, alpha=0.6, epsilon=0.01, seed=0)


class Shard:
    """A store of accepted segments; the batches that it deals must be valid for a learner."""

    def __init__(self, frame: FrameSpec) -> None:
        self.store = make_store(frame)
        self.first = play(frame)
        self.store.append(self.first)
        self._frame = frame
        self._taken = 0

    def take_segment(self, shipment: Shipment) -> None:
        """Insert a segment as the replay does."""
        try:
            self.store.append(shipment)
        except ValueError as error:  # the replay refuses these too
            raise WireError(str(error)) from None
        self._taken += 1
        if self._taken % 100 == 0:
            batch = self.deal()
            take_batch(decode_batch(encode_batch(batch), self._frame, N_STEP))

    def take_update(self, update: PriorityUpdate) -> None:
        """Update priorities as the replay does."""
        self.store.update(update.keys, update.td_error, update.retired)
        assert np.isfinite(self.store.mass)
        assert self.store.mass >= 0

    def deal(self) -> Batch:
        """Sample a batch."""
        return Batch(5, 0, 0, self.store.incarnation, 1, self.store.sample(24))


def take_batch(batch: Batch) -> None:
    """Decode a batch as the learner's feeder does: a row that does not decode is flagged; all values are finite."""
    sample = batch.sample
    out = np.zeros((*sample.frame_sizes.shape, *sample.frame.shape), sample.frame.dtype)
    broken = decode_windows(sample.frames, sample.frame_sizes, sample.frame, out)
    corrupted = corrupted_windows(sample.frames, sample.frame_sizes, sample.transitions["window_crc"])
    assert broken.shape == corrupted.shape == sample.keys.shape
    assert np.isfinite(out).all()


class Ledger:
    """The replay's accounts of sequence numbers."""

    def __init__(self) -> None:
        self._accounts = Accounts(max_accounts=64)

    def take(self, bye: Bye) -> None:
        """Take a BYE; an unknown sender is first registered with its count as a sequence number."""
        if self._accounts.finish(bye.actor, bye.incarnation, bye.count) is None:
            self._accounts.admit(bye.actor, bye.incarnation, bye.count)
        assert len(self._accounts) <= 64
        assert min(asdict(self._accounts.totals).values()) >= 0


class Telemetry:
    """The learner's statistics of statuses."""

    def __init__(self) -> None:
        self._stats = RunStats(since=0.0)
        self._heard = 0

    def take(self, status: Status) -> None:
        """Take a status; compute the summary after each thousand."""
        self._heard += 1
        self._stats.add(status, float(self._heard))
        assert abs(self._stats.decisions) < 1 << 63  # TensorBoard's axis
        if self._heard % 1000 == 0:
            self._stats.summary(float(self._heard), 1)
            self._stats.ends()
            assert all(len(each.ends) <= 64 for each in self._stats.archive(float(self._heard)))


def nothing(_: Any) -> None:
    """Consumer of kinds whose values are stored unchanged."""


def targets() -> list[Target]:
    """One target per kind; two where images and vectors are handled differently."""
    found = []
    for suffix, frame in FRAMES.items():
        shard = Shard(frame)
        decode: dict[str, Callable[[Parts], Any]] = {
            "SEGMENT": lambda parts: decode_segment(parts, SIGNATURE, N_STEP),
            "BATCH": lambda parts, frame=frame: decode_batch(parts, frame, N_STEP),  # type: ignore[misc]
        }
        segment, batch = encode_segment(shard.first, SIGNATURE), encode_batch(shard.deal())
        found += [
            Target(f"SEGMENT{suffix}", _bytes(segment), decode["SEGMENT"], shard.take_segment),
            Target(f"BATCH{suffix}", _bytes(batch), decode["BATCH"], take_batch),
        ]
    shard = Shard(FRAMES[""])
    keys = np.arange(16, dtype=np.uint64)
    td_error = np.linspace(0, 3, 16).astype(np.float32)
    update = PriorityUpdate(5, 0, shard.store.incarnation, 1, keys, td_error, keys % 4 == 0)
    tensors = make_tensors({"weight": np.ones((3, 4), np.float32), "bias": np.zeros(3, np.float32)})
    episodes = (Episode(12.5, 300, 0.01, "1-1", {"max_x": 3161.0, "cleared": 1.0}), Episode(-3.0, 17, 0.4))
    archive = (StageArchive("1-1", 128.0, (3, 2, 0, 1), (0, 0, 200, 0)), StageArchive("", 1.0, (1,), (0,)))
    status = Status(
        "actor", "actor-7", "host", 1, 1, 1.6e9, 1.7e9, 1.7e9, {"decisions": 4096.0}, episodes, archive=archive
    )
    found += [
        Target("PRIORITIES", _bytes(encode_priorities(update)), decode_priorities, shard.take_update),
        Target("HELLO", _bytes(encode(Kind.HELLO, Hello("run", 5, 0, SIGNATURE))), decode_hello, nothing),
        Target(
            "PARAMETERS",
            _bytes(encode(Kind.PARAMETERS, Parameters("run", 5, 8, 9, SIGNATURE, SIGNATURE, tensors))),
            decode_parameters,
            _take_parameters,
        ),
        Target("HEARTBEAT", _bytes(encode(Kind.HEARTBEAT, Heartbeat("run", 5, 8, 9))), decode_heartbeat, nothing),
        Target("BYE", _bytes(encode(Kind.BYE, Bye("actor", 1, 12))), decode_bye, Ledger().take),
        Target("STATUS", _bytes(encode(Kind.STATUS, status)), decode_status, Telemetry().take),
        Target(
            "RELAYED_STATUS",
            _bytes(encode(Kind.RELAYED_STATUS, status)),
            decode_relayed_status,
            nothing,
        ),
    ]
    return found


def _bytes(parts: Sequence[Any]) -> Message:
    return [bytes(part) for part in parts]


def _take_parameters(decoded: tuple[Parameters, dict[str, npt.NDArray[Any]]]) -> None:
    assert all(np.isfinite(array).all() for array in decoded[1].values())


# Mutations: each makes a hostile message from a valid one.


def edited(rng: random.Random, data: bytes) -> bytes:
    """The data with a few bytes overwritten, inserted or removed."""
    buffer = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(buffer))
        new = rng.choice(NUMBERS) if rng.random() < 0.3 else rng.randbytes(rng.randint(0, 3))
        buffer[at : at + rng.choice((len(new), len(new), 0, 3))] = new
    return bytes(buffer)


def headed(kind: int, body: bytes, *, major: int = PROTOCOL_VERSION[0], flags: int = 0, raw_size: int = -1) -> bytes:
    return PRELUDE.pack(kind, major, flags, 0, len(body) if raw_size < 0 else raw_size) + body


def _mutate_bytes(rng: random.Random, target: Target) -> Message:
    parts = list(target.valid)
    victim = rng.randrange(len(parts))
    parts[victim] = edited(rng, parts[victim])
    return parts


def _mutate_body(rng: random.Random, target: Target) -> Message:
    return [headed(target.kind, edited(rng, target.raw)), *target.valid[1:]]


def _truncate(rng: random.Random, target: Target) -> Message:
    if rng.random() < 0.5:
        return [headed(target.kind, target.raw[: rng.randrange(len(target.raw))]), *target.valid[1:]]
    parts = list(target.valid)
    victim = rng.randrange(len(parts))
    parts[victim] = parts[victim][: rng.randrange(len(parts[victim]))]
    return parts


def _lie_about_size(rng: random.Random, target: Target) -> Message:
    """Oversized, undersized and impossible declarations, compressed or not."""
    limit = LIMITS[target.kind][0]
    size = rng.choice((0, 1, len(target.raw) - 1, len(target.raw) + 1, limit, limit + 1, 2**32 - 1))
    flags = rng.choice((0, FLAG_LZ4, FLAG_LZ4, 2, 0x81))
    body = lz4.block.compress(target.raw, store_size=False) if flags & FLAG_LZ4 else target.raw
    return [headed(target.kind, body, flags=flags, raw_size=size), *target.valid[1:]]


def _bomb(rng: random.Random, target: Target) -> Message:
    """A small lz4 block that decompresses to the limit: zeros, or one MessagePack header repeated."""
    size = min(LIMITS[target.kind][0], rng.choice((1 << 10, 1 << 14, 1 << 16)) if rng.random() < 0.99 else 1 << 22)
    filler = rng.choice((b"\x00", b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"))
    body = lz4.block.compress((filler * size)[:size], store_size=False)
    return [headed(target.kind, body, flags=FLAG_LZ4, raw_size=size), *target.valid[1:]]


def _change_number(rng: random.Random, target: Target) -> Message:
    """NaN, infinities and extremes in the columns."""
    body = dict(target.body)
    columns = [name for name, value in body.items() if isinstance(value, bytes) and value]
    if not columns:
        return _change_field(rng, target)
    name = rng.choice(columns)
    number = rng.choice(NUMBERS)
    at = rng.randrange(len(body[name])) // len(number) * len(number)
    body[name] = (body[name][:at] + number + body[name][at + len(number) :])[: len(body[name])]
    return [headed(target.kind, msgspec.msgpack.encode(body)), *target.valid[1:]]


def _change_field(rng: random.Random, target: Target) -> Message:
    """Another type, length, shape or dtype somewhere in the tree; sometimes a field more or less."""
    body = _changed(rng, target.body)
    return [headed(target.kind, msgspec.msgpack.encode(body)), *target.valid[1:]]


def _changed(rng: random.Random, node: Any) -> Any:
    if isinstance(node, dict | list) and node and rng.random() < 0.8:
        fresh: Any = node.copy()
        key = rng.choice(list(fresh)) if isinstance(fresh, dict) else rng.randrange(len(fresh))
        if isinstance(fresh, dict) and rng.random() < 0.05:
            del fresh[key]
        else:
            fresh[key] = _changed(rng, fresh[key])
        return fresh
    if isinstance(node, bytes) and rng.random() < 0.5:
        return rng.choice((node[:-1], node + node, node[: len(node) // 2], node + b"\0"))
    if isinstance(node, int) and rng.random() < 0.5:
        return node + rng.choice((-1, 1))
    return rng.choice(ANYTHING)


def _shuffle_parts(rng: random.Random, target: Target) -> Message:
    return [rng.choice([*target.valid, b"", b"\0" * 9]) for _ in range(rng.randint(1, 4))]


def _claim(rng: random.Random, target: Target) -> Message:
    """Another kind or protocol version over the same body."""
    kind, major = (
        rng.choice([*Kind, 0, max(Kind) + 1, 255]),
        rng.choice((0, PROTOCOL_VERSION[0], PROTOCOL_VERSION[0], 255)),
    )
    return [headed(kind, target.raw, major=major), *target.valid[1:]]


def _forge_frames(rng: random.Random, target: Target) -> Message:
    """Frames of random bytes with matching checksums."""
    if target.kind is not Kind.SEGMENT:
        return _mutate_bytes(rng, target)
    sizes = np.frombuffer(target.body["frame_sizes"], "<u4").tolist()
    blocks = [rng.randbytes(size) for size in sizes]
    crcs = np.array([frame_crc(block) for block in blocks], "<u4").tobytes()
    return [headed(target.kind, msgspec.msgpack.encode(target.body | {"frame_crcs": crcs})), b"".join(blocks)]


MUTATIONS = (
    *(_mutate_bytes, _mutate_body, _truncate, _lie_about_size, _bomb, _change_number, _change_number),
    *(_change_field, _change_field, _change_field, _shuffle_parts, _claim, _forge_frames),
)
REMEMBERED = 64


def fuzz(target: Target, inputs: int, seed: int) -> Report:
    """Send mutated and valid messages, and earlier ones again in another order."""
    rng = random.Random(seed)
    report = Report(target.name)
    earlier: list[Message] = [target.valid]
    began = time.monotonic()
    for number in range(inputs):
        if rng.random() < 0.1:
            parts = rng.choice(earlier)  # replayed, out of order
        else:
            parts = rng.choice(MUTATIONS)(rng, target)
            if len(earlier) < REMEMBERED:
                earlier.append(parts)
            else:
                earlier[rng.randrange(1, REMEMBERED)] = parts
        try:
            target.take(target.decode(parts))
        except WireError:
            report.refused += 1
        except Exception:
            report.crashes.append(f"seed {seed}, input {number} of {target.name}:\n{traceback.format_exc()}")
        else:
            report.accepted += 1
    report.seconds = time.monotonic() - began
    return report


def main() -> int:
    """Run all targets and print their reports; return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.fuzz", description="Send hostile messages of every kind to decoders and consumers."
    )
    parser.add_argument(
        "--inputs", type=int, default=INPUTS, metavar="N", help=f"number of inputs per kind (default: {INPUTS})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the mutations (default: 0)")
    parser.add_argument("--kinds", nargs="*", metavar="KIND", help="test only these kinds (default: all)")
    arguments = parser.parse_args()
    faulthandler.enable()
    failed = False
    for target in targets():
        if arguments.kinds and target.name not in arguments.kinds:
            continue
        report = fuzz(target, arguments.inputs, arguments.seed)
        print(report, *report.crashes[:3], sep="\n", flush=True)
        failed |= bool(report.crashes)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
