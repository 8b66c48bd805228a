"""HTTP endpoint of a role's own metrics for Prometheus; the client library is imported only if it is enabled."""

from __future__ import annotations

import errno
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from apex_zmq.config.settings import Telemetry
from apex_zmq.errors import ConfigError
from apex_zmq.watch.metrics import find
from apex_zmq.wire.messages import Status

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger(__name__)

MAX_PORTS = 1000  # ports tried from telemetry.metrics_port on
TIMES = {  # help texts of the fields of a status that are exported besides its metrics
    "start_time_s": "start of the process (unix seconds)",
    "progress_time_s": "last progress of the main loop (unix seconds)",
}


@dataclass(frozen=True)
class Endpoint:
    """A running HTTP server and its thread."""

    port: int
    _server: WSGIServer
    _thread: threading.Thread

    def close(self) -> None:
        """Stop the server, free the port and join the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(telemetry: Telemetry, status: Callable[[], Status]) -> Endpoint | None:
    """Serve the status of this process on the first free port from `telemetry.metrics_port` on; None: it is null.

    status: returns the status to serve; called in another thread at each request.

    Raises:
        ConfigError: `telemetry.metrics_host` is no address of this host, a port may not be bound, or none is free.
    """
    if telemetry.metrics_port is None:
        return None
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.registry import Collector

    class StatusCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            return families(status())

    registry = CollectorRegistry()
    registry.register(StatusCollector())
    host, first = telemetry.metrics_host, telemetry.metrics_port
    ports = range(first, min(first + MAX_PORTS, 65536))
    for port in ports:
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise ConfigError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; set telemetry.metrics_host to an "
                "address of this host, and telemetry.metrics_port to a port that this user may bind"
            ) from None
        log.info("metrics at http://%s:%d/metrics", host, port)
        return Endpoint(port, server, thread)
    raise ConfigError(f"no port from {first} to {ports[-1]} is free for metrics; set another telemetry.metrics_port")


def families(status: Status) -> Iterator[Metric]:
    """Convert a status to Prometheus metrics `apex_<role>_<metric>` with the label `name`; shards also have `shard`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = {"name": status.name}
    if status.role == "replay":
        labels["shard"] = status.name.rpartition("-")[2]
    numbers = status.metrics | {"start_time_s": status.start_time, "progress_time_s": status.progress_time}
    for name, value in numbers.items():
        row = find(name)
        family = CounterMetricFamily if row is not None and row.kind == "counter" else GaugeMetricFamily
        text = f"{row.help}{f' ({row.unit})' if row.unit else ''}" if row is not None else TIMES.get(name, name)
        metric = family(re.sub(r"\W", "_", f"apex_{status.role}_{name}"), text, labels=list(labels))
        metric.add_metric(list(labels.values()), value)
        yield metric
