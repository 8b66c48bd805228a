"""What a shard will need of the machine, before anything is allocated."""

from __future__ import annotations

import psutil

from apex_zmq.config import Config, ConfigError

# Beside the arena: a slot's record offset and its share of the tree, with a margin.
INDEX_BYTES_PER_TRANSITION = 24


def check_memory(config: Config, shards: int) -> int:
    """Bytes that so many shards of this config need on one machine.

    Raises:
        ConfigError: more than the machine has available.
    """
    replay = config.replay
    total = replay.arena_bytes + INDEX_BYTES_PER_TRANSITION * replay.capacity
    needed = total * shards // replay.shards
    available = psutil.virtual_memory().available
    if needed > available:
        raise ConfigError(
            f"replay needs {needed / 1e9:.1f} GB and this machine has {available / 1e9:.1f} GB available; "
            "lower replay.arena_bytes or replay.capacity, or spread replay.shards over hosts"
        )
    return needed
