"""Segments over a link that breaks: what is lost is counted, and bounded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq.cli.launch import free_ports
from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.net.links import LINKS
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.roles.actor.shipper import Shipper
from apex_zmq.roles.replay import ReplayServer
from apex_zmq.signature import experience_signature
from apex_zmq.types import FrameSpec, Segment, Shipment

from ..channels import links_of
from ..proxy import Proxy


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[tuple[ReplayServer, list[tuple[str, int, int]], Config]]:
    """A shard, and a log of all that it has stored: actor, incarnation, sequence."""
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(4)]
    config = loading.replace(
        Config(),
        {
            "env.frame_stack": 1,
            "actor.segment_length": 10,
            "learner.batch_size": 8,
            "replay.capacity": 10_000,
            "replay.arena_bytes": 1 << 26,
            "replay.min_size": 20,
            "addresses.experience": ports[:1],
            "addresses.priorities": ports[1:2],
            "addresses.batches": ports[2],
            "addresses.status": ports[3],
        },
    )
    server, stored, stop = ReplayServer(config, 0), list[tuple[str, int, int]](), threading.Event()
    append = server._store.append

    def logged(shipment: Shipment) -> int:
        key = append(shipment)
        stored.append((shipment.actor, shipment.incarnation, shipment.sequence))
        return key

    server._store.append = logged  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    yield server, stored, config
    stop.set()
    thread.join()


def large_segment() -> Segment:
    """Ten transitions of 10 kB frames."""
    builder = SegmentBuilder(FrameSpec((2500,), "float32", 1), 3, 0.9, 10)
    frame = np.zeros(2500, np.float32)
    builder.reset(frame[None])
    while (segment := builder.take()) is None:
        builder.step(0, 0.0, frame, 1.0, False, False)
        builder.bootstrap(0.0)
    return segment


@pytest.mark.skipif(sys.platform != "linux", reason="knows the sizes of Linux's buffers")
@pytest.mark.parametrize("cuts", [0, 2])
def test_lost_segments_are_counted_and_bounded_per_cut(
    cuts: int, shard: tuple[ReplayServer, list[tuple[str, int, int]], Config], opened: Callable[[Any], Any]
) -> None:
    server, stored, config = shard
    proxy: Proxy = opened(Proxy(config.addresses.experience[0]))
    shipper = opened(
        Shipper(links_of(experience=proxy.address), 1, experience_signature(config), "actor", 7, drop_oldest=False)
    )
    segment = large_segment()

    def ship() -> None:
        shipper.ship(segment)
        while shipper.blocked:
            shipper.wait(0.1)

    for _ in range(cuts):
        for _ in range(20):
            ship()
        while len(set(stored)) < 10:
            shipper.wait(0.01)
        proxy.open.clear()
        while not shipper.blocked:  # until all queues and buffers on the way are full
            shipper.ship(segment)
            if shipper.blocked:
                shipper.wait(0.2)
        proxy.cut()
        while shipper.blocked:
            shipper.wait(0.1)
    for _ in range(30):
        ship()
    totals = server._accounts.totals
    while totals.received + totals.lost < shipper.sent or len(stored) < totals.received:
        shipper.send_bye()
    assert totals.received == len(stored) == len(set(stored))
    assert totals.lost == shipper.sent - len(stored)
    assert (totals.duplicate, totals.refused) == (0, 0)
    # Queues of both ends, what the kernel holds at each end of both connections (Linux gives twice what it is asked
    # for), what the proxy has in hand, and one being written at each end.
    link = LINKS["experience"]
    assert link.kernel_bytes is not None
    assert isinstance(link.connected_queue, int)
    kernel = 2 * 2 * 2 * link.kernel_bytes // len(segment.frames) + 1
    bound = link.bound_queue + link.connected_queue + kernel + 1 + 2
    assert totals.lost <= cuts * bound
    assert (totals.lost > 0) == (cuts > 0)
