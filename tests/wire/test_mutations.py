"""Mutated messages: each decodes or is refused, and a decoded message can be used."""

from __future__ import annotations

import copy
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.types import Batch, Shipment
from apex_zmq.wire.codec import Kind, WireError, kind_of, pack, unpack
from apex_zmq.wire.experience import encode_segment
from apex_zmq.wire.frames import decode_windows

from .bodies import NAMES, Decoders, Message, body_of, with_body

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([0, 1, 2, 255, 2**31, 2**32, 2**63 - 1, 2**63])
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def edited(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes overwritten, put in or cut out."""
    buffer = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(buffer)))
        buffer[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(buffer)


def replaced(draw: st.DrawFn, node: Any) -> Any:
    """A tree with one node replaced: a column by numbers of the same length, others by anything."""
    if isinstance(node, dict | list) and node and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = copy.copy(node)
        node[key] = replaced(draw, node[key])
        return node
    if isinstance(node, bytes) and node and draw(st.booleans()):
        at = draw(st.integers(0, len(node) - 1)) // 4 * 4
        value = draw(st.floats(width=32).map(lambda x: struct.pack("<f", x)) | st.binary(min_size=4, max_size=4))
        return (node[:at] + value + node[at + 4 :])[: len(node)]
    return draw(values)


@st.composite
def mutations(draw: st.DrawFn, parts: Message) -> Message:
    kind = kind_of(parts[0])
    match draw(st.sampled_from(["field", "field", "body", "bytes", "parts"])):
        case "field":
            return with_body(parts, replaced(draw, body_of(parts)))
        case "body":
            return [pack(kind, edited(draw, bytes(unpack(parts[0])[1]))), *parts[1:]]
        case "bytes":
            victim = draw(st.integers(0, len(parts) - 1))
            return [edited(draw, part) if index == victim else part for index, part in enumerate(parts)]
        case _:
            return draw(st.lists(st.sampled_from([*parts, b""]), max_size=3))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_mutated_message_decodes_or_is_refused(
    name: str, data: st.DataObject, valid: dict[str, Message], decoders: Decoders
) -> None:
    parts = data.draw(mutations(valid[name]))
    try:
        if not parts:
            raise WireError("ZeroMQ delivers one part at least")
        decoded = decoders[name](parts)
    except WireError:
        return
    if isinstance(decoded, Batch):
        sample = decoded.sample
        out = np.zeros((*sample.frame_sizes.shape, *sample.frame.shape), sample.frame.dtype)
        decode_windows(sample.frames, sample.frame_sizes, sample.frame, out)
        assert np.isfinite(out).all()
    if isinstance(decoded, Shipment):
        segment, rows = decoded.segment, decoded.segment.transitions
        window_ends = rows["first"].astype(int) + rows["steps"] + segment.frame.stack
        assert window_ends.max() <= len(segment.frame_sizes)
        assert encode_segment(decoded, body_of(parts)["signature"])


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.STATUS])
@given(value=values)
@settings(deadline=None, max_examples=60)
def test_arbitrary_messagepack_bodies_are_refused(kind: Kind, value: Any, decoders: Decoders) -> None:
    with pytest.raises(WireError):
        decoders[kind.name]([pack(kind, msgpack.packb(value))])


def test_deep_nesting_is_refused(decoders: Decoders) -> None:
    for bomb in (b"\x91" * 4000, b"\x81\xa7metrics" * 400, b"\x81\xa7unknown" + b"\x91" * 3000):
        with pytest.raises(WireError):
            decoders["STATUS"]([pack(Kind.STATUS, bomb)])


def test_huge_array_and_map_lengths_are_refused(valid: dict[str, Message], decoders: Decoders) -> None:
    huge_array, huge_map = b"\xdd\x0f\xff\xff\xff", b"\xdf\x0f\xff\xff\xff"
    raw = bytes(unpack(valid["STATUS"][0])[1])
    at = raw.index(b"\xa8episodes") + 9
    with pytest.raises(WireError, match="length"):
        decoders["STATUS"]([pack(Kind.STATUS, raw[:at] + huge_array)])
    at = raw.index(b"\xa7metrics") + 8
    with pytest.raises(WireError, match="length"):
        decoders["STATUS"]([pack(Kind.STATUS, raw[:at] + huge_map)])
