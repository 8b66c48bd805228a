"""What a shard will need of the machine, before anything is allocated."""

from __future__ import annotations

from pathlib import Path, PurePath

import psutil

from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError

# Beside the arena: a slot's record offset and its share of the tree, with a margin.
INDEX_BYTES_PER_TRANSITION = 24
SNAPSHOT_BYTES_PER_TRANSITION = 24  # in three files while the third is written
CONTROL_GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def check_memory(config: Config, shards: int) -> int:
    """Bytes that so many shards of this config need on one machine.

    Raises:
        ConfigError: more than the machine has, or a container or job may use of it. What others use of it now they may
            have freed by the time it fills.
    """
    needed = _share(config, shards, INDEX_BYTES_PER_TRANSITION)
    total = min([psutil.virtual_memory().total, *_group_limits()])
    if needed > total:
        raise ConfigError(
            f"replay needs {needed / 1e9:.1f} GB and has {total / 1e9:.1f} GB here; "
            "lower replay.arena_bytes or replay.capacity, or spread replay.shards over hosts"
        )
    return needed


def _group_limits() -> list[int]:
    """Bytes that each control group around this process may use, as far as they are to be seen from within one."""
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
    """Bytes that the files of so many shards take at most (`replay.snapshot_dir`)."""
    return _share(config, shards, SNAPSHOT_BYTES_PER_TRANSITION)


def _share(config: Config, shards: int, bytes_per_transition: int) -> int:
    replay = config.replay
    return (replay.arena_bytes + bytes_per_transition * replay.capacity) * shards // replay.shards
