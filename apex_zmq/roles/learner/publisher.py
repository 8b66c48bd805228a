"""The thread that owns the parameter and status sockets: parameters and heartbeats out, statuses in, relays out."""

from __future__ import annotations

import queue
import threading

from apex_zmq.errors import ConfigError
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Parameters, Status, decode_status

SERVE_S = 0.05  # welcomes are sent only when subscriptions are read, which is due every 0.1 s
MAX_QUEUED_STATUSES = 100  # statuses, each with up to 4,096 episodes


class Publisher(threading.Thread):
    """Publishes the newest parameters with heartbeats, receives statuses and relays them.

    This thread touches neither disk nor statistics, so that a slow disk cannot delay parameters.

    statuses: queue of received statuses, for the journal. While it is full, further ones stay in the socket.

    Raises:
        ConfigError: an address cannot be bound.
    """

    def __init__(self, links: Links) -> None:
        super().__init__(name="publisher", daemon=True)
        self._parameters = ParameterPublisher(links)
        try:
            self._inbox: Inbox[Status] = links.bind("status", {Kind.STATUS: decode_status})
        except ConfigError:
            self._parameters.close()
            raise
        self.statuses: queue.Queue[Status] = queue.Queue(MAX_QUEUED_STATUSES)
        self._newest: queue.SimpleQueue[Parameters] = queue.SimpleQueue()
        self._relays: queue.SimpleQueue[Status] = queue.SimpleQueue()
        self._closing = threading.Event()

    def publish(self, parameters: Parameters) -> None:
        """Queue parameters; only the newest queued ones are sent."""
        self._newest.put(parameters)

    def relay(self, status: Status) -> None:
        """Queue the learner's own status for all subscribers."""
        self._relays.put(status)

    @property
    def refused(self) -> int:
        """Number of statuses dropped because they break the protocol."""
        return self._inbox.refused

    def run(self) -> None:
        """Serve until closed; send the queued messages before returning."""
        while not self._closing.is_set():
            wait([] if self.statuses.full() else [self._inbox], [], SERVE_S)
            self._serve()
        self._serve()
        self._close_sockets()

    def _serve(self) -> None:
        self._parameters.serve()
        parameters = None
        while not self._newest.empty():
            parameters = self._newest.get()
        if parameters is not None:
            self._parameters.publish(parameters)
        while not self._relays.empty():
            self._parameters.send(encode(Kind.RELAYED_STATUS, self._relays.get()))
        for _ in range(MAX_QUEUED_STATUSES):  # at most, so that a flood of statuses cannot delay parameters
            if self.statuses.full() or (status := self._inbox.receive()) is None:
                break
            self.statuses.put(status)
            self._parameters.send(encode(Kind.RELAYED_STATUS, status))

    def close(self) -> None:
        """Stop the thread and unbind its addresses."""
        self._closing.set()
        if self.is_alive():
            self.join()
        else:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._parameters.close()
        self._inbox.close()
