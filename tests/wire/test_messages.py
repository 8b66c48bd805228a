from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest

from apex_zmq.types import TRANSITION, Batch, PriorityUpdate, Shipment
from apex_zmq.wire.body import Body, encode
from apex_zmq.wire.codec import LIMITS, Kind, WireError, kind_of, pack, unpack
from apex_zmq.wire.experience import encode_segment
from apex_zmq.wire.messages import Episode, Heartbeat, Status, decode_hello

from .bodies import NAMES, Decoders, Message, body_of, with_body

OPEN = ("HEARTBEAT", "STATUS", "RELAYED_STATUS")  # bodies whose unknown fields are ignored
OFFSETS = {name: offset for name, (_, offset, *_) in (TRANSITION.fields or {}).items()}


def changed(parts: Message, path: str, value: Any) -> Message:
    """The message with the field at a dotted path set; `value` may be a function of the old one."""
    body = body_of(parts)
    *parents, leaf = [int(key) if key.isdigit() else key for key in path.split(".")]
    node: Any = body
    for key in parents:
        node = node[key]
    node[leaf] = value(node[leaf]) if callable(value) else value
    return with_body(parts, body)


def patched(dtype: str, index: int, value: float) -> Callable[[bytes], bytes]:
    """Sets one number of a column."""

    def patch(column: bytes) -> bytes:
        array = np.frombuffer(column, dtype).copy()
        array[index] = value
        return array.tobytes()

    return patch


def patched_row(name: str, index: int, value: float) -> Callable[[bytes], bytes]:
    """Sets one number of a table of transitions, which travels column by column."""

    def patch(table: bytes) -> bytes:
        rows = len(table) // TRANSITION.itemsize
        columns = bytearray(table)
        np.ndarray(rows, TRANSITION[name], columns, rows * OFFSETS[name])[index] = value
        return bytes(columns)

    return patch


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for field in dataclasses.fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(right, np.ndarray):
            np.testing.assert_array_equal(left, right, field.name)
            assert left.dtype == right.dtype, field.name
        elif field.name in ("sample", "segment"):
            assert_same(left, right)
        elif field.name == "frames":
            assert bytes(left) == bytes(right)
        else:
            assert left == right, field.name


# Round trips.


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_segment_round_trip(
    codec: str, shipments: dict[str, Shipment], valid: dict[str, Message], decoders: Decoders
) -> None:
    name = "SEGMENT" if codec == "lz4" else "SEGMENT/raw"
    assert_same(decoders[name](valid[name]), shipments[codec])


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_batch_round_trip(codec: str, batches: dict[str, Batch], valid: dict[str, Message], decoders: Decoders) -> None:
    name = "BATCH" if codec == "lz4" else "BATCH/raw"
    assert_same(decoders[name](valid[name]), batches[codec])


def test_priorities_round_trip(update: PriorityUpdate, valid: dict[str, Message], decoders: Decoders) -> None:
    assert_same(decoders["PRIORITIES"](valid["PRIORITIES"]), update)


def test_acknowledgement_without_priorities_is_accepted(valid: dict[str, Message], decoders: Decoders) -> None:
    body = body_of(valid["PRIORITIES"]) | {"acknowledged": 9, "keys": b"", "td_error": b"", "retired": b""}
    update = decoders["PRIORITIES"](with_body(valid["PRIORITIES"], body))
    assert (update.acknowledged, len(update.keys), len(update.td_error), len(update.retired)) == (9, 0, 0, 0)


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.HEARTBEAT, Kind.STATUS, Kind.RELAYED_STATUS])
def test_struct_round_trip(kind: Kind, bodies: dict[Kind, Body], valid: dict[str, Message], decoders: Decoders) -> None:
    assert decoders[kind.name](valid[kind.name]) == bodies[kind]


def test_parameters_round_trip(bodies: dict[Kind, Body], valid: dict[str, Message], decoders: Decoders) -> None:
    body, arrays = decoders["PARAMETERS"](valid["PARAMETERS"])
    assert body == bodies[Kind.PARAMETERS]
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "torso.weight": ((3, 4), np.float32),
        "torso.bias": ((3,), np.float32),
    }
    assert arrays["torso.weight"].tobytes() == body.tensors[0].data


def test_scalar_parameters_are_accepted(valid: dict[str, Message], decoders: Decoders) -> None:
    scalar = {"name": "a", "dtype": "float32", "shape": [], "data": struct.pack("<f", 3)}
    _, arrays = decoders["PARAMETERS"](changed(valid["PARAMETERS"], "tensors", [scalar]))
    assert (arrays["a"].shape, float(arrays["a"])) == ((), 3.0)


@pytest.mark.parametrize("name", NAMES)
def test_any_buffer_type_decodes(name: str, valid: dict[str, Message], decoders: Decoders) -> None:
    decoders[name]([memoryview(part) for part in valid[name]])
    decoders[name]([bytearray(part) for part in valid[name]])


# Refusals. Rows: message, field, value, reason.

NAN, INF = math.nan, math.inf
REFUSED: list[tuple[str, str, Any, str]] = [
    ("SEGMENT", "signature", "f" * 16, "signature"),
    ("SEGMENT", "actor", "", "length"),
    ("SEGMENT", "actor", "a" * 65, "length"),
    ("SEGMENT", "incarnation", -1, ">= 0"),
    ("SEGMENT", "incarnation", 2**63, "<="),
    ("SEGMENT", "sequence", 1.5, "int"),
    ("SEGMENT", "transitions", b"", "0 transitions"),
    ("SEGMENT", "transitions", bytes(1025 * TRANSITION.itemsize), "1025 transitions"),
    ("SEGMENT", "transitions", lambda table: table[:-1], "multiple of 21"),
    ("SEGMENT", "frame.shape", [], "length"),
    ("SEGMENT", "frame.shape", [1, 1, 1, 1], "length"),
    ("SEGMENT", "frame.shape", [65536, 65536, 65536], "too large"),
    ("SEGMENT", "frame.shape", [12, 0], ">= 1"),
    ("SEGMENT", "frame.dtype", "uint16", "uint16"),
    ("SEGMENT", "frame.codec", "raw", "encoded as lz4"),
    ("SEGMENT", "frame.stack", 0, ">= 1"),
    ("SEGMENT", "frame.stack", 64, "beyond the segment's frames"),
    ("SEGMENT", "frame_sizes", b"", "0 frames"),
    ("SEGMENT", "frame_sizes", bytes(4 * (65536 + 1)), "65537 frames"),
    ("SEGMENT", "frame_sizes", lambda column: column[:-1], "frame_sizes holds"),
    ("SEGMENT", "frame_sizes", lambda column: column[:-4], "frame_crcs holds"),
    ("SEGMENT", "frame_sizes", patched("<u4", 3, 2**32 - 1), "add up"),
    ("SEGMENT", "frame_crcs", patched("<u4", 3, 1), "damaged"),
    ("SEGMENT", "transitions", patched_row("first", 2, 65535), "beyond the segment's frames"),
    ("SEGMENT", "transitions", patched_row("steps", 0, 0), "steps outside"),
    ("SEGMENT", "transitions", patched_row("steps", 0, 4), "steps outside"),
    ("SEGMENT", "transitions", patched_row("reward", 1, NAN), "reward is not finite"),
    ("SEGMENT", "transitions", patched_row("reward", 1, -INF), "reward is not finite"),
    ("SEGMENT", "transitions", patched_row("discount", 1, 1.0001), "discount outside"),
    ("SEGMENT", "transitions", patched_row("discount", 1, -0.0001), "discount outside"),
    ("SEGMENT", "transitions", patched_row("discount", 1, NAN), "discount outside"),
    ("SEGMENT", "transitions", patched_row("td_error", 1, NAN), "td_error is not finite"),
    ("SEGMENT", "transitions", patched_row("td_error", 1, INF), "td_error is not finite"),
    ("SEGMENT", "transitions", patched_row("td_error", 1, -0.5), "negative td_error"),
    ("SEGMENT", "transitions", patched_row("window_crc", 3, 1), r"window_crc of transition \[3\]"),
    ("SEGMENT/raw", "frame.shape", [4], "wrong size"),
    ("BATCH", "learner_incarnation", -1, ">= 0"),
    ("BATCH", "transitions", b"", "0 rows"),
    ("BATCH", "transitions", bytes(65537 * TRANSITION.itemsize), "65537 rows"),
    ("BATCH", "transitions", lambda table: table[: -TRANSITION.itemsize], "expected"),
    ("BATCH", "transitions", lambda table: table + b"\0", "multiple of 21"),
    ("BATCH", "window", 8, "window of 8"),
    ("BATCH", "window", 129, "<= 128"),
    ("BATCH", "num_transitions", 0, ">= 1"),
    ("BATCH", "mass", 0.0, "> 0"),
    ("BATCH", "mass", NAN, "> 0"),
    ("BATCH", "mass", INF, "mass is not finite"),
    ("BATCH", "frame.stack", 3, "this learner expects"),
    ("BATCH", "frame.shape", [10, 12], "this learner expects"),
    ("BATCH", "keys", lambda column: column[:-8], "keys holds"),
    ("BATCH", "priority", patched("<f8", 0, 0), "priority not positive"),
    ("BATCH", "priority", patched("<f8", 0, NAN), "priority is not finite"),
    ("BATCH", "priority", patched("<f8", 0, INF), "priority is not finite"),
    ("BATCH", "transitions", patched_row("reward", 0, INF), "reward is not finite"),
    ("BATCH", "transitions", patched_row("discount", 0, 1.5), "discount outside"),
    ("BATCH", "transitions", patched_row("discount", 0, NAN), "discount outside"),
    ("BATCH", "transitions", patched_row("td_error", 0, -1), "negative td_error"),
    ("BATCH", "transitions", patched_row("steps", 0, 0), "steps outside"),
    ("BATCH", "transitions", patched_row("steps", 0, 4), "steps outside"),
    ("BATCH", "frame_sizes", patched("<u4", 0, 0), "add up"),
    ("PRIORITIES", "keys", bytes(8 * 65537), "65537 rows"),
    ("PRIORITIES", "keys", lambda column: column[:-1], "keys holds"),
    ("PRIORITIES", "keys", lambda column: column[:-8], "td_error holds"),
    ("PRIORITIES", "retired", lambda column: column[:-1], "retired holds"),
    ("PRIORITIES", "retired", patched("u1", 0, 2), "neither 0 nor 1"),
    ("PRIORITIES", "td_error", patched("<f4", 0, -1), "negative td_error"),
    ("PRIORITIES", "acknowledged", -1, ">= 0"),
    ("PRIORITIES", "td_error", patched("<f4", 0, NAN), "td_error is not finite"),
    ("PRIORITIES", "td_error", patched("<f4", 0, -INF), "td_error is not finite"),
    ("PRIORITIES", "td_error", lambda column: column[:-1], "td_error holds"),
    ("HELLO", "run", "", "length"),
    ("HELLO", "learner_incarnation", 2**63, "<="),
    ("HELLO", "rank", None, "int"),
    ("PARAMETERS", "version", "1", "int"),
    ("PARAMETERS", "tensors.0.dtype", "float64", "float64"),
    ("PARAMETERS", "tensors.0.dtype", "float16", "float16"),
    ("PARAMETERS", "tensors.0.shape", [3, 5], "torso.weight holds"),
    ("PARAMETERS", "tensors.0.shape", [3, 0], ">= 1"),
    ("PARAMETERS", "tensors.0.shape", [2**32, 2**32], "<="),
    ("PARAMETERS", "tensors.0.shape", [1] * 40, "length <= 8"),
    ("PARAMETERS", "tensors.0.data", patched("<f4", 5, NAN), "torso.weight is not finite"),
    ("PARAMETERS", "tensors.0.data", patched("<f4", 5, INF), "torso.weight is not finite"),
    ("PARAMETERS", "tensors.1.name", "torso.weight", "two tensors"),
    ("HEARTBEAT", "update", -1, ">= 0"),
    ("STATUS", "role", "king", "king"),
    ("STATUS", "time", NAN, "not finite"),
    ("STATUS", "progress_time", INF, "not finite"),
    ("STATUS", "metrics", {"decisions": NAN}, "not finite"),
    ("STATUS", "metrics", {"decisions": -INF}, "not finite"),
    ("STATUS", "metrics", {"": 1.0}, "length"),
    ("STATUS", "metrics", {str(i): 1.0 for i in range(257)}, "length"),
    ("STATUS", "episodes.0.episode_return", NAN, "not finite"),
    ("STATUS", "episodes.0.epsilon", 1.5, "<= 1"),
    ("STATUS", "episodes.0.epsilon", NAN, "epsilon"),
    ("STATUS", "episodes.0.stage", "1" * 33, "length"),
    ("STATUS", "episodes.0.info", {"max_x": NAN}, "not finite"),
    ("STATUS", "episodes.1.info", {"max_x": INF}, "not finite"),
    ("STATUS", "episodes.0.info", {"": 1.0}, "length"),
    ("STATUS", "episodes.0.info", {"x" * 33: 1.0}, "length"),
    ("STATUS", "episodes.0.info", {str(i): 1.0 for i in range(17)}, "length"),
    ("STATUS", "episodes.0.info", {"max_x": "far"}, "float"),
    ("STATUS", "refusals", [{"actor": "a", "segments": 1, "reason": "x" * 201}], "length"),
    ("STATUS", "refusals", [{"actor": "", "segments": 1, "reason": ""}], "length"),
    ("STATUS", "refusals", [{"actor": "a", "segments": -1, "reason": ""}], ">= 0"),
    ("STATUS", "refusals", [{"actor": "a", "segments": 1, "reason": ""}] * 17, "length"),
    ("STATUS", "archive.0.stage", "1" * 33, "length"),
    ("STATUS", "archive.0.width", 0.0, "> 0"),
    ("STATUS", "archive.0.width", INF, "not finite"),
    ("STATUS", "archive.1.width", NAN, "> 0"),
    ("STATUS", "archive.0.frontier", [], "length"),
    ("STATUS", "archive.0.frontier", [0] * 65, "length"),
    ("STATUS", "archive.0.frontier.1", -1, ">= 0"),
    ("STATUS", "archive.0.ends.1", 2**30 + 1, "<="),
    ("STATUS", "archive.0.ends", [1, 2, 3], "histograms of '1-1' differ in length"),
    ("STATUS", "archive", lambda archive: archive * 33, "length"),
    ("RELAYED_STATUS", "time", NAN, "not finite"),
]


@pytest.mark.parametrize(
    ("name", "path", "value", "reason"),
    [pytest.param(*row, id=f"{row[0]}.{row[1]}-{index}") for index, row in enumerate(REFUSED)],
)
def test_impossible_values_are_refused_with_a_reason(
    name: str, path: str, value: Any, reason: str, valid: dict[str, Message], decoders: Decoders
) -> None:
    with pytest.raises(WireError, match=reason):
        decoders[name](changed(valid[name], path, value))


def test_a_window_must_hold_exactly_its_frames(valid: dict[str, Message], decoders: Decoders) -> None:
    sizes = np.frombuffer(body_of(valid["BATCH"])["frame_sizes"], "<u4").reshape(-1, 7)
    short = int(np.flatnonzero(sizes[:, -1] == 0)[0])
    missing, padded = sizes.copy(), sizes.copy()
    missing[short, 0] = 0
    heirs = np.flatnonzero(missing)[: sizes[short, 0]]  # a byte each, for none may be larger than lz4 makes any
    missing.flat[heirs] += 1
    assert missing.sum() == sizes.sum()
    padded[short, -1], padded[short, 0] = 1, sizes[short, 0] - 1
    for wrong in (missing, padded):
        with pytest.raises(WireError, match="stack \\+ steps frames"):
            decoders["BATCH"](changed(valid["BATCH"], "frame_sizes", wrong.tobytes()))


def test_vectors_that_are_not_finite_are_refused(valid: dict[str, Message], decoders: Decoders) -> None:
    head, frames = valid["SEGMENT/raw"]
    broken = np.frombuffer(frames, "<f4").copy()
    broken[7] = np.nan
    with pytest.raises(WireError, match="observation is not finite"):
        decoders["SEGMENT/raw"]([head, broken.tobytes()])


def test_a_frame_damaged_on_the_way_is_refused(valid: dict[str, Message], decoders: Decoders) -> None:
    head, frames = valid["SEGMENT"]
    with pytest.raises(WireError, match="damaged"):
        decoders["SEGMENT"]([head, frames[:-1] + bytes([frames[-1] ^ 1])])


def changed_segment(shipment: Shipment, **changes: Any) -> Shipment:
    return dataclasses.replace(shipment, segment=dataclasses.replace(shipment.segment, **changes))


def test_an_empty_frame_is_refused(shipments: dict[str, Shipment], decoders: Decoders, signature: str) -> None:
    shipment = shipments["lz4"]
    segment = shipment.segment
    sizes = segment.frame_sizes.copy()
    sizes[0], sizes[1] = 0, sizes[0] + sizes[1]
    with pytest.raises(WireError, match="empty frame"):
        decoders["SEGMENT"](encode_segment(changed_segment(shipment, frame_sizes=sizes), signature))


def test_block_above_the_lz4_bound_is_refused(
    shipments: dict[str, Shipment], decoders: Decoders, signature: str
) -> None:
    shipment = shipments["lz4"]
    segment = shipment.segment
    sizes, excess = segment.frame_sizes.copy(), 2 * segment.frame.nbytes
    sizes[0] += excess
    large = changed_segment(shipment, frame_sizes=sizes, frames=bytes(excess) + bytes(segment.frames))
    with pytest.raises(WireError, match="maximum size of lz4"):
        decoders["SEGMENT"](encode_segment(large, signature))


@pytest.mark.parametrize("name", NAMES)
def test_parts_too_few_or_too_many_are_refused(name: str, valid: dict[str, Message], decoders: Decoders) -> None:
    for parts in (valid[name][:-1], [*valid[name], b""]):
        with pytest.raises(WireError, match=f"{len(parts)} parts"):
            decoders[name](parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_message_of_another_kind_is_refused(name: str, valid: dict[str, Message], decoders: Decoders) -> None:
    other = Kind.BATCH if name.startswith("SEGMENT") else Kind.SEGMENT if name.startswith("BATCH") else Kind.STATUS
    if name == "STATUS":
        other = Kind.HELLO
    parts = [bytes([other]) + valid[name][0][1:], *valid[name][1:]]
    with pytest.raises(WireError, match=f"kind is {other.name}"):
        decoders[name](parts)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_missing_fields_are_refused(name: str, valid: dict[str, Message], decoders: Decoders) -> None:
    body = body_of(valid[name])
    if name not in OPEN:
        with pytest.raises(WireError, match="unknown field `surplus`"):
            decoders[name](with_body(valid[name], body | {"surplus": 1}))
    for field in body.keys() - {"episodes", "refusals", "archive"}:  # which have defaults
        with pytest.raises(WireError, match=f"missing required field `{field}`"):
            decoders[name](with_body(valid[name], {key: value for key, value in body.items() if key != field}))


class LaterEpisode(Episode, frozen=True):
    surplus: int = 1


class LaterStatus(Status, frozen=True):
    surplus: tuple[str, ...] = ("of", "a", "later", "minor", "version")


class LaterHeartbeat(Heartbeat, frozen=True):
    surplus: float = 0.5


@pytest.mark.parametrize("name", OPEN)
def test_fields_of_a_later_minor_version_are_ignored(
    name: str, valid: dict[str, Message], decoders: Decoders, bodies: dict[Kind, Body]
) -> None:
    kind = Kind[name]
    body = bodies[kind]
    if isinstance(body, Status):
        episodes = tuple(LaterEpisode(**msgspec.structs.asdict(episode)) for episode in body.episodes)
        assert episodes
        later: Body = LaterStatus(**{**msgspec.structs.asdict(body), "episodes": episodes})
    else:
        later = LaterHeartbeat(**msgspec.structs.asdict(body))
    parts = encode(kind, later)
    assert b"surplus" in bytes(unpack(parts[0])[1])
    assert decoders[name](parts) == body == decoders[name](valid[name])


def test_an_empty_archive_is_not_sent(bodies: dict[Kind, Body], decoders: Decoders) -> None:
    status = bodies[Kind.STATUS]
    assert isinstance(status, Status)
    without = msgspec.structs.replace(status, archive=())
    parts = [bytes(part) for part in encode(Kind.STATUS, without)]
    assert "archive" not in body_of(parts)
    assert decoders["STATUS"](parts) == without


@pytest.mark.parametrize("name", NAMES)
def test_truncated_messages_are_refused(name: str, valid: dict[str, Message], decoders: Decoders) -> None:
    raw = bytes(unpack(valid[name][0])[1])
    kind = kind_of(valid[name][0])
    for length in range(0, len(raw), max(1, len(raw) // 50)):
        with pytest.raises(WireError):
            decoders[name]([pack(kind, raw[:length]), *valid[name][1:]])
    with pytest.raises(WireError, match="trailing"):
        decoders[name]([pack(kind, raw + b"\xc0"), *valid[name][1:]])


def test_a_buffer_part_above_its_limit_is_refused(
    valid: dict[str, Message], decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, Kind.SEGMENT, (LIMITS[Kind.SEGMENT][0], len(valid["SEGMENT"][1]) - 1))
    with pytest.raises(WireError, match="buffer part exceeds"):
        decoders["SEGMENT"](valid["SEGMENT"])


def test_strings_that_are_not_utf8_are_refused(valid: dict[str, Message], decoders: Decoders) -> None:
    for text in (b"run-1", b"rank"):
        with pytest.raises(WireError, match="HELLO: 'utf-8' codec"):
            decode_hello([valid["HELLO"][0].replace(text, b"\xff" + text[1:])])


def test_encoded_body_is_readable_by_msgpack(bodies: dict[Kind, Body]) -> None:
    (part,) = encode(Kind.HELLO, bodies[Kind.HELLO])
    assert msgpack.unpackb(bytes(part)[8:]) == {
        "run": "run-1",
        "learner_incarnation": 2**60,
        "rank": 0,
        "signature": "0123456789abcdef",
    }
