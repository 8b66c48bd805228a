"""What a shard will need of the machine, before anything is allocated."""

from __future__ import annotations

import psutil

from apex_zmq.config import Config, ConfigError

# Beside the arena: a slot's record offset and its share of the tree, with a margin.
INDEX_BYTES_PER_TRANSITION = 24
SNAPSHOT_BYTES_PER_TRANSITION = 24  # in three files while the third is written


def check_memory(config: Config, shards: int) -> int:
    """Bytes that so many shards of this config need on one machine.

    Raises:
        ConfigError: more than the machine has. What others use of it now they may have freed by the time it fills.
    """
    needed = _share(config, shards, INDEX_BYTES_PER_TRANSITION)
    total = psutil.virtual_memory().total
    if needed > total:
        raise ConfigError(
            f"replay needs {needed / 1e9:.1f} GB and this machine has {total / 1e9:.1f} GB; "
            "lower replay.arena_bytes or replay.capacity, or spread replay.shards over hosts"
        )
    return needed


def disk_bytes(config: Config, shards: int) -> int:
    """Bytes that the files of so many shards take at most (`replay.snapshot_dir`)."""
    return _share(config, shards, SNAPSHOT_BYTES_PER_TRANSITION)


def _share(config: Config, shards: int, bytes_per_transition: int) -> int:
    replay = config.replay
    return (replay.arena_bytes + bytes_per_transition * replay.capacity) * shards // replay.shards
