"""Synthetic actors in one process: CONNECTIONS TRANSITIONS_PER_S (in total; 0: unlimited) ADDRESS ...

Each connection sends the segments of the frame set repeatedly to one of the addresses, until the program is stopped.
At a given rate `incarnation` is the time of sending (monotonic nanoseconds); otherwise messages are encoded beforehand.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence

from msgspec.structs import replace as replace_struct

from apex_zmq.config.settings import Config
from apex_zmq.net.sockets import Links, wait
from apex_zmq.signature import experience_signature
from apex_zmq.types import Shipment
from apex_zmq.wire.body import Parts
from apex_zmq.wire.experience import encode_segment
from benchmarks import mario_frames, synthetic


def send(connections: int, transitions_per_s: float, addresses: Sequence[str]) -> None:
    """Send until stopped; a connection whose queue is full is skipped until it has room."""
    config = Config()
    links = Links(replace_struct(config, addresses=replace_struct(config.addresses, experience=tuple(addresses))))
    signature = experience_signature(config)
    outboxes = [links.connect("experience", index % len(addresses)) for index in range(connections)]
    length = config.actor.segment_length
    begin, sent = time.monotonic(), 0
    segments = mario_frames.segments(mario_frames.play(), config)
    messages: Iterator[Parts] = synthetic.messages(segments, config)
    if transitions_per_s:
        stamped = (Shipment("synthetic", time.monotonic_ns(), 0, segment) for segment in itertools.cycle(segments))
        messages = (encode_segment(shipment, signature) for shipment in stamped)
    turn = itertools.cycle(outboxes)
    while True:
        if transitions_per_s and (ahead := sent / transitions_per_s - (time.monotonic() - begin)) > 0:
            time.sleep(ahead)
        ready = next((outbox for outbox in (next(turn) for _ in outboxes) if outbox.ready), None)
        if ready is None:
            wait([], outboxes, 0.1)
        elif ready.send(next(messages)):
            sent += length


if __name__ == "__main__":
    send(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
