"""The replay shard: a log of compressed segments, sampled by priority."""
