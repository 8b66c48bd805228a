"""A shard's experience on disk: arena, snapshots, recovery, and the budget of memory and disk."""
