"""Subscribers in one process: COUNT ADDRESS.

Prints the time (monotonic seconds) whenever all of them have received as many sets of parameters as the others.
"""

from __future__ import annotations

import sys
import time

from apex_zmq.net.sockets import Inbox, wait
from apex_zmq.wire.codec import Kind


def main(count: int, address: str) -> None:
    seen: list[set[bytes]] = [set() for _ in range(count)]
    # The body begins with run, learner_incarnation and version; a welcome may bring the same version twice.
    inboxes = [
        Inbox.subscribe(address, {Kind.PARAMETERS: lambda parts, index=index: seen[index].add(bytes(parts[0][:96]))})  # type: ignore[misc]
        for index in range(count)
    ]
    everywhere = 0
    while True:
        wait(inboxes, [], 1.0)
        for inbox in inboxes:
            inbox.receive()
        if min(map(len, seen)) > everywhere:
            everywhere = min(map(len, seen))
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
