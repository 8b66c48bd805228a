"""The first part of every message: an 8-byte prelude, then a MessagePack body.

Prelude, little-endian: kind u8 | major version u8 | flags u8 | minor version u8 | raw_size u32, the body's size before
compression. Kind and versions keep their places in every version, so that peers of different versions recognise each
other. docs/PROTOCOL.md is the specification; a test compares `PROTOCOL_VERSION` with it.
"""

from __future__ import annotations

import math
import struct
from enum import IntEnum
from typing import Any

import lz4.block
import numpy as np
import numpy.typing as npt

from apex_zmq.types import Buffer

PROTOCOL_VERSION = 3, 1  # major, minor
VERSION_BYTES = 4  # leading bytes of a message, which hold kind and version in every version
PRELUDE = struct.Struct("<BBBBI")
FLAG_LZ4 = 1

# Bodies smaller than this, or larger than this share of their size after compression, are not compressed.
MIN_COMPRESSED_BYTES = 512
MAX_COMPRESSED_SHARE = 0.9
# Maximum expansion of an lz4 block; larger sizes are refused before memory is allocated.
MAX_LZ4_RATIO = 255


class Kind(IntEnum):
    """First byte of every message; PUB/SUB filters match on it."""

    SEGMENT = 1
    BATCH = 2
    PRIORITIES = 3
    HELLO = 4
    PARAMETERS = 5
    HEARTBEAT = 6
    STATUS = 7
    RELAYED_STATUS = 8
    BYE = 9


# Bytes allowed per kind: (body before compression, each buffer part).
LIMITS: dict[Kind, tuple[int, int]] = {
    Kind.SEGMENT: (4 << 20, 256 << 20),
    Kind.BATCH: (64 << 20, 1 << 30),
    Kind.PRIORITIES: (4 << 20, 0),
    Kind.HELLO: (4 << 10, 0),
    Kind.PARAMETERS: (1 << 30, 0),
    Kind.HEARTBEAT: (4 << 10, 0),
    Kind.STATUS: (4 << 20, 0),
    Kind.RELAYED_STATUS: (4 << 20, 0),
    Kind.BYE: (4 << 10, 0),
}


class WireError(ValueError):
    """A message that breaks the protocol; the text is the reason, for a log."""


class VersionError(WireError):
    """A message of another major version. version: major and minor."""

    def __init__(self, version: tuple[int, int]) -> None:
        super().__init__(f"protocol version {version_text(version)}, this program has {version_text()}")
        self.version = version


def version_text(version: tuple[int, int] = PROTOCOL_VERSION) -> str:
    """Return a protocol version as text."""
    return "{}.{}".format(*version)


def pack(kind: Kind, body: bytes) -> bytes:
    """Join prelude and body; the body is compressed if that makes it a tenth smaller."""
    raw_size, flags = len(body), 0
    if raw_size >= MIN_COMPRESSED_BYTES and kind is not Kind.PARAMETERS:  # float weights hardly compress
        compressed = lz4.block.compress(body, store_size=False)
        if len(compressed) <= MAX_COMPRESSED_SHARE * raw_size:
            body, flags = compressed, FLAG_LZ4
    major, minor = PROTOCOL_VERSION
    return PRELUDE.pack(kind, major, flags, minor, raw_size) + body


def kind_of(part: Buffer) -> Kind:
    """Return the kind of a message from its first part.

    Raises:
        WireError: a part that is too short, an unknown kind.
        VersionError: another major version.
    """
    if len(part) < VERSION_BYTES:
        raise WireError(f"message of {len(part)} bytes is shorter than its prelude")
    kind, major, _, minor = part[:VERSION_BYTES]
    if major != PROTOCOL_VERSION[0]:
        raise VersionError((major, minor))
    if len(part) < PRELUDE.size:
        raise WireError(f"message of {len(part)} bytes is shorter than its prelude")
    try:
        return Kind(kind)
    except ValueError:
        raise WireError(f"unknown message kind {kind}") from None


def unpack(part: Buffer) -> tuple[Kind, Buffer]:
    """Return kind and raw body of a message's first part; sizes are checked before memory is allocated.

    Raises:
        WireError: as `kind_of`; unknown flags, sizes that disagree or exceed the kind's limit.
    """
    kind = kind_of(part)
    _, _, flags, _, raw_size = PRELUDE.unpack_from(part)
    body = memoryview(part)[PRELUDE.size :]
    limit = LIMITS[kind][0]
    if flags & ~FLAG_LZ4:
        raise WireError(f"unknown flags {flags:#x}")
    if raw_size > limit:
        raise WireError(f"body of {raw_size} bytes exceeds the {limit} of {kind.name}")
    if flags & FLAG_LZ4:
        if raw_size > MAX_LZ4_RATIO * len(body):
            raise WireError(f"{len(body)} bytes of lz4 cannot hold a body of {raw_size}")
        try:
            raw: bytes = lz4.block.decompress(body, uncompressed_size=raw_size)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError, MemoryError):
            raise WireError("body does not decompress") from None
        if len(raw) != raw_size:
            raise WireError(f"body decompresses to {len(raw)} bytes, {raw_size} declared")
        return kind, raw
    if len(body) != raw_size:
        raise WireError(f"body of {len(body)} bytes, {raw_size} declared")
    return kind, body


def to_bytes(array: npt.ArrayLike, dtype: str) -> bytes:
    """Encode a column as little-endian bytes, C order."""
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def from_bytes(data: Buffer, dtype: str, shape: tuple[int, ...], name: str) -> npt.NDArray[Any]:
    """Decode a column from little-endian bytes, without a copy.

    Raises:
        WireError: the size is not that of `shape`.
    """
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise WireError(f"{name} holds {len(data)} bytes, {expected} expected")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
