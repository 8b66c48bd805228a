"""Reverb's inserts per second: FRAME_SET CHUNK_LENGTH WRITERS SECONDS."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time

from benchmarks.peers.reverb_server import TABLE, served, write


def keep_writing(address: str, path: str, chunk_length: int) -> None:
    import reverb

    for _ in write(reverb.Client(address), path, chunk_length):
        pass


def main(path: str, chunk_length: int, writers: int, seconds: float) -> None:
    with served(10**6) as address:
        import reverb

        client = reverb.Client(address)
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=keep_writing, args=(address, path, chunk_length), daemon=True)
            for _ in range(writers)
        ]
        for process in processes:
            process.start()

        def inserted() -> int:
            return int(client.server_info()[TABLE].rate_limiter_info.insert_stats.completed)

        while inserted() < 5_000:
            time.sleep(0.1)
        first, begin = inserted(), time.monotonic()
        time.sleep(seconds)
        rate = (inserted() - first) / (time.monotonic() - begin)
        for process in processes:
            process.terminate()
            process.join()
        print(json.dumps({"inserts_per_s": rate}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
