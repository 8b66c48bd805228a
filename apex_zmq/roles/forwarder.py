"""The forwarder role: relays one parameter stream from the learner to the actors of a host."""

from __future__ import annotations

import logging
import secrets
import threading

from apex_zmq.config.settings import Config
from apex_zmq.net.parameters import ParameterFollower, ParameterPublisher
from apex_zmq.net.sockets import Links
from apex_zmq.roles.status import StatusReporter
from apex_zmq.signature import experience_signature

log = logging.getLogger(__name__)

SERVE_S = 0.05  # maximum time between two calls of `ParameterPublisher.serve`


class Forwarder:
    """Subscribes to `addresses.parameters` and publishes on `address`, with its own welcome message and heartbeats.

    While the learner is down, new subscribers still receive its last parameters.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, config: Config, name: str, address: str) -> None:
        links = Links(config)
        self._publisher = ParameterPublisher(links, address)
        self._follower = ParameterFollower(links, None, experience_signature(config))
        self._reporter = StatusReporter("forwarder", name, secrets.randbits(63), config, links)
        log.info("forwarding %s to %s", config.addresses.parameters, address)

    def run(self, stop: threading.Event) -> None:
        """Forward until `stop` is set.

        Raises:
            MismatchError: the learner has another experience signature or version of the protocol.
        """
        self._reporter.start()
        forwarded = 0
        try:
            while not stop.is_set():
                if self._follower.poll(SERVE_S) is not None:
                    assert self._follower.newest is not None
                    self._publisher.publish(self._follower.newest)
                    forwarded += 1
                    self._reporter.metrics = {"forwarded": forwarded}
                self._publisher.serve()
                self._reporter.progress()
        finally:
            self._reporter.close()
            self._follower.close()
            self._publisher.close()
