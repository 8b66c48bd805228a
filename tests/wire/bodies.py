"""Bodies of encoded messages, as plain values, for tests that change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from apex_zmq.wire.body import Parts
from apex_zmq.wire.codec import Kind, kind_of, pack, unpack

Message = list[bytes]
Decoders = dict[str, Callable[[Parts], Any]]
NAMES = ("SEGMENT", "SEGMENT/raw", "BATCH", "BATCH/raw", *(kind.name for kind in Kind if kind > Kind.BATCH))


def body_of(parts: Message) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(unpack(parts[0])[1])
    return body


def with_body(parts: Message, body: Any) -> Message:
    return [pack(kind_of(parts[0]), msgpack.packb(body)), *parts[1:]]
