"""Resident bytes of a Reverb server per stored window: FRAME_SET CHUNK_LENGTH STORED."""

from __future__ import annotations

import json
import multiprocessing
import sys

import psutil

from benchmarks.peers.reverb_server import fill, served


def main(path: str, chunk_length: int, stored: int) -> None:
    with served(stored) as address:
        import reverb

        (server,) = multiprocessing.active_children()
        fill(reverb.Client(address), path, chunk_length, stored)
        print(json.dumps({"bytes_per_item": psutil.Process(server.pid).memory_info().rss / stored}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
