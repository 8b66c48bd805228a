"""Measure time and bandwidth of publishing 13 MB of parameters to 1 to 256 subscribers, with and without forwarders.

The Nature network's parameters in float32, over loopback TCP; timed from publishing until the last subscriber has
them, each set after the one before has arrived. Forwarders are real processes, one for every 64 subscribers, at
most four.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from apex_zmq.agent.networks import make_network, to_arrays
from apex_zmq.config import loading
from apex_zmq.config.settings import Agent, Config
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Links
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import FrameSpec
from apex_zmq.wire.messages import Parameters, make_tensors
from benchmarks.rows import ROOT, Row, main, versus
from benchmarks.synthetic import free_addresses

SUBSCRIBERS = (1, 16, 64, 256)
PER_FORWARDER = 64
VERSIONS = 5


def measure() -> list[Row]:
    rows: list[Row] = []
    for count in SUBSCRIBERS:
        direct = seconds(count, forwarders=0)
        rows.append(row(count, 0, direct, []))
        if count > 1:
            forwarders = -(-count // PER_FORWARDER)
            rows.append(row(count, forwarders, seconds(count, forwarders), direct))
    return rows


def row(count: int, forwarders: int, times: Sequence[float], direct: Sequence[float]) -> Row:
    sent = (forwarders or count) * sum(array.nbytes for array in arrays().values()) / 1e6
    way = f"{forwarders} forwarder{'s' * (forwarders > 1)}; peer: directly" if forwarders else "the learner itself"
    what = f"13 MB of parameters to {count} subscriber{'s' * (count > 1)} by {way}; the learner sends {sent:.0f} MB"
    return versus("parameters", what, times, direct, None, "s", less_is_better=True)


def arrays() -> dict[str, npt.NDArray[Any]]:
    return to_arrays(make_network(Agent("nature"), FrameSpec((84, 84), "uint8", 4), 7))


def seconds(count: int, forwarders: int) -> list[float]:
    """Seconds from publishing to the last arrival, for each version but the first."""
    upstream, *downstream = free_addresses(1 + forwarders)
    config = loading.replace(Config(), {"addresses.parameters": upstream, "telemetry.log_level": "warning"})
    publisher = ParameterPublisher(Links(config))
    with running(config, downstream, count) as subscribers:
        times = []
        for version in range(1, VERSIONS + 2):
            tensors = arrays()
            parameters = Parameters(
                run="bench",
                learner_incarnation=1,
                version=version,
                update=version,
                network_signature=network_signature(tensors),
                experience_signature=experience_signature(config),
                tensors=make_tensors(tensors),
            )
            begin = time.monotonic()
            publisher.publish(parameters)
            times.append(max(arrivals(publisher, subscribers)) - begin)
    publisher.close()
    return times[1:]


@contextlib.contextmanager
def running(config: Config, downstream: Sequence[str], count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start forwarders at these addresses, and processes of subscribers that are connected to them."""
    sources = downstream or [config.addresses.parameters]
    environment = os.environ | {"APEX_PARAMETERS": config.addresses.parameters}
    forwarders = [
        subprocess.Popen(
            [ROOT / "bin/apex-forwarder", "--bind", address, "--set", "telemetry.log_level=warning"], env=environment
        )
        for address in downstream
    ]
    subscribers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.subscribers", str(count // len(sources)), address],
            stdout=subprocess.PIPE,
            text=True,
        )
        for address in sources
    ]
    try:
        yield subscribers
    finally:
        for process in subscribers + forwarders:
            process.send_signal(signal.SIGINT if process in forwarders else signal.SIGKILL)
            process.wait()


def arrivals(publisher: ParameterPublisher, subscribers: Sequence[subprocess.Popen[str]]) -> list[float]:
    """Monotonic seconds at which the last subscriber of each process received the newest version."""
    waiting = {process.stdout: process for process in subscribers if process.stdout is not None}
    times = []
    while waiting:
        publisher.serve()
        for stream in select.select(list(waiting), [], [], 0.05)[0]:
            times.append(float(stream.readline()))
            del waiting[stream]
    return times


if __name__ == "__main__":
    main(measure)
