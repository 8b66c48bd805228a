from __future__ import annotations

import struct
import tracemalloc

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_zmq.wire.codec import (
    FLAG_LZ4,
    LIMITS,
    MIN_COMPRESSED_BYTES,
    PROTOCOL_VERSION,
    Kind,
    WireError,
    from_bytes,
    kind_of,
    pack,
    to_bytes,
    unpack,
)

MAJOR, MINOR = PROTOCOL_VERSION


def header(kind: int, raw_size: int, *, major: int = MAJOR, flags: int = 0, minor: int = MINOR) -> bytes:
    return struct.pack("<BBBBI", kind, major, flags, minor, raw_size)


@given(st.sampled_from(Kind), st.binary(max_size=300), st.integers(1, 30))
def test_unpack_returns_what_was_packed(kind: Kind, chunk: bytes, repeats: int) -> None:
    body = chunk * repeats
    part = pack(kind, body)
    assert kind_of(part) is kind
    assert (unpack(part)[0], bytes(unpack(part)[1])) == (kind, body)


def test_only_large_compressible_bodies_are_compressed() -> None:
    large, small = bytes(MIN_COMPRESSED_BYTES), bytes(MIN_COMPRESSED_BYTES - 1)
    noise = np.random.default_rng(0).bytes(MIN_COMPRESSED_BYTES)
    assert len(pack(Kind.STATUS, large)) < MIN_COMPRESSED_BYTES // 10
    assert pack(Kind.STATUS, small) == header(Kind.STATUS, len(small)) + small
    assert pack(Kind.STATUS, noise) == header(Kind.STATUS, len(noise)) + noise
    assert pack(Kind.PARAMETERS, large) == header(Kind.PARAMETERS, len(large)) + large


def test_parameters_may_arrive_compressed() -> None:
    body = bytes(5000)
    part = header(Kind.PARAMETERS, len(body), flags=FLAG_LZ4) + lz4.block.compress(body, store_size=False)
    assert unpack(part) == (Kind.PARAMETERS, body)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (b"", "shorter than its prelude"),
        (header(Kind.HELLO, 0)[:-1], "shorter than its prelude"),
        (header(Kind.HELLO, 0, major=MAJOR + 1, minor=2), rf"protocol version {MAJOR + 1}\.2, this program has"),
        (bytes([Kind.HELLO, MAJOR - 1, 0, 0]), rf"protocol version {MAJOR - 1}\.0, this program has"),
        (bytes([200, MAJOR + 1, 255, 7]), rf"protocol version {MAJOR + 1}\.7, this program has"),
        (header(0, 0), "unknown message kind 0"),
        (header(10, 0), "unknown message kind 10"),
        (header(255, 0), "unknown message kind 255"),
        (header(Kind.HELLO, 1, flags=2) + b"a", "unknown flags"),
        (header(Kind.HELLO, 1, flags=0x80 | FLAG_LZ4) + b"a", "unknown flags"),
        (header(Kind.HELLO, 2) + b"a", "1 bytes, 2 declared"),
        (header(Kind.HELLO, 0) + b"a", "1 bytes, 0 declared"),
        (header(Kind.HELLO, 4097) + bytes(4097), "exceeds the 4096 of HELLO"),
        (header(Kind.HELLO, 2**32 - 1, flags=FLAG_LZ4) + b"a", "exceeds"),
        (header(Kind.HELLO, 10, flags=FLAG_LZ4), "cannot hold"),
        (header(Kind.HELLO, 0, flags=FLAG_LZ4), "does not decompress"),
        (header(Kind.HELLO, 10, flags=FLAG_LZ4) + b"\xff\xff\xff", "does not decompress"),
    ],
)
def test_bad_header_parts_are_refused_with_a_reason(part: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack(part)


def test_a_message_of_another_minor_version_is_read() -> None:
    assert unpack(header(Kind.HELLO, 1, minor=MINOR + 1) + b"a") == (Kind.HELLO, b"a")


@pytest.mark.parametrize("declared", [999, 1001])
def test_compressed_body_must_have_the_declared_size(declared: int) -> None:
    block = lz4.block.compress(bytes(range(200)) * 5, store_size=False)
    with pytest.raises(WireError, match="decompress"):
        unpack(header(Kind.STATUS, declared, flags=FLAG_LZ4) + block)


@pytest.mark.parametrize("kind", Kind)
def test_decompression_bombs_are_refused_before_allocation(kind: Kind) -> None:
    limit = LIMITS[kind][0]
    part = header(kind, limit, flags=FLAG_LZ4) + bytes(15)
    over = header(kind, limit + 1, flags=FLAG_LZ4) + lz4.block.compress(bytes(100), store_size=False)
    tracemalloc.start()
    try:
        for bomb in (part, over):
            with pytest.raises(WireError):
                unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_densest_lz4_block_is_accepted() -> None:
    body = bytes(LIMITS[Kind.STATUS][0])
    block = lz4.block.compress(body, mode="high_compression", compression=12, store_size=False)
    assert len(unpack(header(Kind.STATUS, len(body), flags=FLAG_LZ4) + block)[1]) == len(body)


def test_columns_are_little_endian_and_of_exact_size() -> None:
    assert to_bytes([1, 258], "<u2") == b"\x01\x00\x02\x01"
    assert from_bytes(b"\x01\x00\x02\x01", "<u2", (2,), "x").tolist() == [1, 258]
    assert from_bytes(b"", "<f4", (0,), "x").shape == (0,)
    assert from_bytes(bytes(24), "<f4", (2, 3), "x").shape == (2, 3)
    for shape in ((1,), (3,), (2, 2), (1 << 30,) * 8):
        with pytest.raises(WireError, match="x holds 4 bytes"):
            from_bytes(bytes(4), "<u2", shape, "x")
    with pytest.raises(WireError, match="x holds 0 bytes"):
        from_bytes(b"", "<u2", (1 << 32, 1 << 32), "x")  # 0 in 64 bits
