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

SERVE_S = 0.05  # a welcome leaves only while subscriptions are read: at least every 0.1 s
HEARD_AHEAD = 100  # statuses, each with up to 4,096 episodes


class Publisher(threading.Thread):
    """Publishes the newest parameters with heartbeats, receives statuses and relays them.

    This thread touches neither disk nor statistics, so that no slow file delays parameters.

    heard: received statuses, for the journal. While it is full, further ones wait in the socket.

    Raises:
        ConfigError: an address that cannot be bound.
    """

    def __init__(self, links: Links) -> None:
        super().__init__(name="publisher", daemon=True)
        self._parameters = ParameterPublisher(links)
        try:
            self._statuses: Inbox[Status] = links.bind("status", {Kind.STATUS: decode_status})
        except ConfigError:
            self._parameters.close()
            raise
        self.heard: queue.Queue[Status] = queue.Queue(HEARD_AHEAD)
        self._newest: queue.SimpleQueue[Parameters] = queue.SimpleQueue()
        self._relays: queue.SimpleQueue[Status] = queue.SimpleQueue()
        self._closing = threading.Event()

    def publish(self, parameters: Parameters) -> None:
        """Hand over parameters; of several that wait, only the newest are sent."""
        self._newest.put(parameters)

    def relay(self, status: Status) -> None:
        """Hand over the learner's own status, to be sent to all subscribers."""
        self._relays.put(status)

    @property
    def refused(self) -> int:
        """Statuses dropped for breaking the protocol."""
        return self._statuses.refused

    def run(self) -> None:
        """Serve until closed; what was handed over before is sent."""
        while not self._closing.is_set():
            wait([] if self.heard.full() else [self._statuses], [], SERVE_S)
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
        for _ in range(HEARD_AHEAD):  # at most, so that a flood of statuses cannot delay parameters
            if self.heard.full() or (status := self._statuses.receive()) is None:
                break
            self.heard.put(status)
            self._parameters.send(encode(Kind.RELAYED_STATUS, status))

    def close(self) -> None:
        """End the thread and free its addresses."""
        self._closing.set()
        if self.is_alive():
            self.join()
        else:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._parameters.close()
        self._statuses.close()
