"""Encoding of all messages: a first part with prelude and body (a typed struct), then buffer parts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from apex_zmq.types import Buffer
from apex_zmq.wire.codec import LIMITS, Kind, WireError, pack, unpack

Parts = Sequence[Buffer]
UInt = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]


class Body(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Base of all message bodies: MessagePack maps keyed by field name; unknown fields are errors."""


class OpenBody(Body, frozen=True, forbid_unknown_fields=False):
    """Base of bodies whose unknown fields are ignored, so that a minor version may add fields."""


B = TypeVar("B", bound=Body)

_encode_body = msgspec.msgpack.Encoder().encode
_decoder = functools.cache(msgspec.msgpack.Decoder)


def encode(kind: Kind, body: Body, *buffers: Buffer) -> list[Buffer]:
    """Encode a message as its parts."""
    return [pack(kind, _encode_body(body)), *buffers]


def decode_body(parts: Parts, kind: Kind, body: type[B], buffers: int = 0) -> B:
    """Decode the body of a message, and check its types and bounds.

    buffers: number of buffer parts of the kind.

    Raises:
        WireError: another kind or number of parts, a part above the kind's limit, an invalid body.
    """
    if len(parts) != 1 + buffers:
        raise WireError(f"{kind.name} has {len(parts)} parts, {1 + buffers} expected")
    found, raw = unpack(parts[0])
    if found is not kind:
        raise WireError(f"kind is {found.name}, {kind.name} expected")
    if any(len(part) > LIMITS[kind][1] for part in parts[1:]):
        raise WireError(f"buffer part exceeds the {LIMITS[kind][1]} bytes of {kind.name}")
    try:
        decoded: B = _decoder(body).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{kind.name}: {error}") from None
    return decoded


def require(condition: Any, reason: str) -> None:
    """Raise WireError if a condition is not met."""
    if not condition:
        raise WireError(reason)


def require_finite(array: npt.NDArray[Any], name: str) -> None:
    """Raise WireError if a value is not finite."""
    require(np.isfinite(array).all(), f"{name} is not finite")
