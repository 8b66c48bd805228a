"""Reverb serving windows of frames in batches of 512: FRAME_SET CHUNK_LENGTH STORED WARM_UP_S SECONDS."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from benchmarks.peers.reverb_server import TABLE, fill, served

BATCH = 512


def main(path: str, chunk_length: int, stored: int, warm_up_s: float, seconds: float) -> None:
    with served(stored) as address:
        import reverb

        client = reverb.Client(address)
        fill(client, path, chunk_length, stored)
        dataset = reverb.TrajectoryDataset.from_table_signature(
            server_address=address, table=TABLE, max_in_flight_samples_per_worker=2 * BATCH
        )
        batches = dataset.batch(BATCH).prefetch(2).as_numpy_iterator()
        priorities = np.random.default_rng(2).random(BATCH) + 0.01

        def train() -> None:
            sample = next(batches)
            assert sample.data["frame"].shape[0] == BATCH
            keys = sample.info.key.tolist()
            client.mutate_priorities(TABLE, updates=dict(zip(keys, priorities.tolist(), strict=True)))

        until = time.monotonic() + warm_up_s
        train()
        while time.monotonic() < until:
            train()
        count, begin = 0, time.monotonic()
        while time.monotonic() < begin + seconds:
            train()
            count += 1
        print(json.dumps({"batches_per_s": count / (time.monotonic() - begin)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
