"""bin/apex-replay that measures the time of each segment from sender to store: --config FILE --shard N.

It writes the times in nanoseconds to FILE.N.npy when it ends.
"""

from __future__ import annotations

import signal
import sys
import threading
import time

import numpy as np

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.roles.replay import ReplayServer
from apex_zmq.types import Shipment
from benchmarks.synthetic import FIRST_INCARNATION


class TimedReplay(ReplayServer):
    """A replay server that records the time since each segment's `incarnation` where that holds a time."""

    def __init__(self, config: Config, shard: int) -> None:
        super().__init__(config, shard)
        self.latency_ns: list[int] = []

    def _insert(self, shipment: Shipment) -> None:
        super()._insert(shipment)
        if shipment.incarnation < FIRST_INCARNATION:
            self.latency_ns.append(time.monotonic_ns() - shipment.incarnation)


def main(path: str, shard: int) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    server = TimedReplay(loading.load(path), shard)
    server.run(stop)
    np.save(f"{path}.{shard}.npy", np.array(server.latency_ns))


if __name__ == "__main__":
    main(sys.argv[2], int(sys.argv[4]))
