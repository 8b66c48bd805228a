"""Subscribers in one process: COUNT ADDRESS.

Prints the time (monotonic seconds) when the last of them has received a version of the parameters.
"""

from __future__ import annotations

import sys
import time

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.wire.codec import Kind


def main(count: int, address: str) -> None:
    seen: list[set[bytes]] = [set() for _ in range(count)]
    # The first bytes hold run, learner_incarnation and version; the welcome message may repeat a version.
    links = Links(loading.replace(Config(), {"addresses.parameters": address}))
    inboxes: list[Inbox[None]] = [
        links.subscribe(
            "parameters",
            {Kind.PARAMETERS: lambda parts, index=index: seen[index].add(bytes(parts[0][:96]))},  # type: ignore[misc]
        )
        for index in range(count)
    ]
    complete = 0
    while True:
        wait(inboxes, [], 1.0)
        for inbox in inboxes:
            inbox.receive()
        if min(map(len, seen)) > complete:
            complete = min(map(len, seen))
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
