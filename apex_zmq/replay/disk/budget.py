"""Memory and disk space that shards need, checked before anything is allocated."""

from __future__ import annotations

from pathlib import Path, PurePath

import psutil

from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError

# Memory beside the arena: a slot's record offset and its share of the sum tree, with a margin.
INDEX_BYTES_PER_TRANSITION = 24
SNAPSHOT_BYTES_PER_TRANSITION = 24  # three files of 8 bytes each, while the third is written
CONTROL_GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def check_memory(config: Config, shards: int) -> int:
    """Return the memory, in bytes, that `shards` shards of this config need on one machine.

    The limit is the total memory of the machine or of its control groups, not the free memory: other processes may
    release theirs before the replay fills.

    Raises:
        ConfigError: the shards need more than the limit.
    """
    needed = _share(config, shards, INDEX_BYTES_PER_TRANSITION)
    total = min([psutil.virtual_memory().total, *_group_limits()])
    if needed > total:
        raise ConfigError(
            f"replay needs {needed / 1e9:.1f} GB of memory, the limit here is {total / 1e9:.1f} GB; "
            "lower replay.arena_bytes or replay.capacity, or spread replay.shards over hosts"
        )
    return needed


def _group_limits() -> list[int]:
    """Memory limits of the control groups that contain this process, in bytes; invisible ones are ignored."""
    limits = []
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, controllers, name = line.split(":", 2)
        mount, file = ("", "memory.max") if controllers == "" else ("memory", "memory.limit_in_bytes")
        if mount not in controllers.split(","):
            continue
        group = PurePath(mount, name.lstrip("/"))
        for path in (group, *group.parents):
            try:
                limit = (CONTROL_GROUPS / path / file).read_text().strip()
            except OSError:
                continue
            if limit != "max":
                limits.append(int(limit))
    return limits


def disk_bytes(config: Config, shards: int) -> int:
    """Return the maximum size of the files of `shards` shards in `replay.snapshot_dir`, in bytes."""
    return _share(config, shards, SNAPSHOT_BYTES_PER_TRANSITION)


def _share(config: Config, shards: int, bytes_per_transition: int) -> int:
    replay = config.replay
    return (replay.arena_bytes + bytes_per_transition * replay.capacity) * shards // replay.shards
