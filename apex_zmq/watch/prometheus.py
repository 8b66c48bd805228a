"""A role's own metrics over HTTP, for Prometheus; its client library is imported only where that is asked for."""

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

PORTS = 1000  # tried before giving up
TIMES = {  # fields of a status beside its metrics
    "start_time_s": "start of the process (unix seconds)",
    "progress_time_s": "last progress of the main loop (unix seconds)",
}


@dataclass(frozen=True)
class Endpoint:
    """An HTTP server in a thread of its own."""

    port: int
    _server: WSGIServer
    _thread: threading.Thread

    def close(self) -> None:
        """Free the port and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(telemetry: Telemetry, status: Callable[[], Status]) -> Endpoint | None:
    """Serve what `status` returns on the first free port from `telemetry.metrics_port` on; None where that is null.

    status: called in another thread at each request.

    Raises:
        ConfigError: an address that is not this host's, or no free port.
    """
    if telemetry.metrics_port is None:
        return None
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.registry import Collector

    class Newest(Collector):
        def collect(self) -> Iterator[Metric]:
            return families(status())

    registry = CollectorRegistry()
    registry.register(Newest())
    host, first = telemetry.metrics_host, telemetry.metrics_port
    for port in range(first, min(first + PORTS, 65536)):
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise ConfigError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; give telemetry.metrics_host an address of "
                "this host and telemetry.metrics_port a port that you may bind"
            ) from None
        log.info("metrics at http://%s:%d/metrics", host, port)
        return Endpoint(port, server, thread)
    raise ConfigError(f"no free port for metrics from {first} on; choose another telemetry.metrics_port")


def families(status: Status) -> Iterator[Metric]:
    """A status as Prometheus knows metrics: `apex_<role>_<metric>`, of one label `name`, a shard's also `shard`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = {"name": status.name}
    if status.role == "replay":
        labels["shard"] = status.name.rpartition("-")[2]
    numbers = status.metrics | {"start_time_s": status.start_time, "progress_time_s": status.progress_time}
    for name, value in numbers.items():
        row = find(name)
        family = CounterMetricFamily if row is not None and row.kind == "counter" else GaugeMetricFamily
        text = f"{row.help}{f' ({row.unit})' if row.unit else ''}" if row is not None else TIMES.get(name, name)
        made = family(re.sub(r"\W", "_", f"apex_{status.role}_{name}"), text, labels=list(labels))
        made.add_metric(list(labels.values()), value)
        yield made
