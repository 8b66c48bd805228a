"""The state of a shard beside its records, as a file: priorities, counters, random state.

magic     8 bytes
crc       uint32, CRC-32 of all following bytes
header    uint32, length of the header in bytes
header    JSON, UTF-8
priority  float64[N], little-endian: of the transitions first_key .. first_key + N - 1
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq.errors import ConfigError
from apex_zmq.rundir.files import replacing
from apex_zmq.types import Float64s, FrameSpec

MAGIC = b"APEXSNAP"
FORMAT_VERSION = 2  # of snapshots and of the records beside them
_PRELUDE = struct.Struct("<8sII")
_CRC_AT = _PRELUDE.size - 4  # offset of the bytes that the CRC covers
_PIECE_BYTES = 1 << 18
_BYTES_PER_S = 32e6  # limits the CPU time that writing takes from sampling


class SnapshotError(Exception):
    """A file that is not a snapshot, or not a complete one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """The state of a store beside its records.

    log_id: log that the keys belong to.
    priority: float64 [N], stored priorities of the transitions from first_key on.
    alpha, epsilon: exponent and offset of the priorities.
    random: state of the random generator of sampling.
    """

    log_id: int
    first_key: int
    priority: Float64s
    alpha: float
    epsilon: float
    frame: FrameSpec
    random: dict[str, Any]

    @property
    def next_key(self) -> int:
        """Key of the next transition."""
        return self.first_key + len(self.priority)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A shard at one moment.

    time: Unix seconds.
    signature: experience signature of its config.
    inserts, samples: counts of the governor.
    """

    time: float
    signature: str
    inserts: int
    samples: int
    store: StoreState


def encode(snapshot: Snapshot) -> tuple[bytes, memoryview]:
    """Encode as the contents of a file, in two parts: prelude with header, and priorities."""
    priority = np.ascontiguousarray(snapshot.store.priority, "<f8")
    store = {each.name: getattr(snapshot.store, each.name) for each in fields(StoreState) if each.name != "priority"}
    store["frame"] = asdict(snapshot.store.frame)
    own = {each.name: getattr(snapshot, each.name) for each in fields(Snapshot) if each.name != "store"}
    header = json.dumps(own | {"format": FORMAT_VERSION, "store": store}).encode()
    size = struct.pack("<I", len(header))
    crc = zlib.crc32(priority.data, zlib.crc32(header, zlib.crc32(size)))
    return _PRELUDE.pack(MAGIC, crc, len(header)) + header, priority.view(np.uint8).data


def decode(data: bytes) -> Snapshot:
    """Decode a file's contents.

    Raises:
        SnapshotError: the file is truncated or damaged.
        ConfigError: the file has another format version.
    """
    if len(data) < _PRELUDE.size:
        raise SnapshotError("truncated")
    magic, crc, header_bytes = _PRELUDE.unpack_from(data)
    if magic != MAGIC or crc != zlib.crc32(memoryview(data)[_CRC_AT:]):
        raise SnapshotError("damaged")
    header = json.loads(data[_PRELUDE.size : _PRELUDE.size + header_bytes])
    if (version := header.pop("format")) != FORMAT_VERSION:
        raise ConfigError(
            f"the replay's files in replay.snapshot_dir have format {version}, this program reads {FORMAT_VERSION}: "
            "start a new run, or delete them to continue with an empty replay"
        )
    store = header.pop("store")
    frame = store.pop("frame")
    spec = FrameSpec(tuple(frame["shape"]), frame["dtype"], frame["stack"])
    priority = np.frombuffer(data, "<f8", offset=_PRELUDE.size + header_bytes)
    return Snapshot(store=StoreState(priority=priority, frame=spec, **store), **header)


def write(path: Path, snapshot: Snapshot, previous: Path) -> None:
    """Atomically replace `path` by a snapshot; the former file moves to `previous`.

    Raises:
        OSError: the file cannot be written; both files are unchanged then.
    """
    with replacing(path, previous) as temporary, temporary.open("wb") as file:
        for part in encode(snapshot):
            for start in range(0, len(part), _PIECE_BYTES):
                piece = part[start : start + _PIECE_BYTES]
                file.write(piece)
                time.sleep(len(piece) / _BYTES_PER_S)
