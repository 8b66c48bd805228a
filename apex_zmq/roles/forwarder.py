"""The forwarder role: one parameter stream from the learner, published again for the actors of a host."""

from __future__ import annotations

import logging
import secrets
import threading

from apex_zmq.config.settings import Config
from apex_zmq.net.keys import client_keys, server_keys
from apex_zmq.net.parameters import ParameterFollower, ParameterPublisher
from apex_zmq.roles.status import StatusReporter
from apex_zmq.signature import experience_signature

log = logging.getLogger(__name__)

SERVE_S = 0.05  # a welcome leaves only while subscriptions are being read: at least every 0.1 s


class Forwarder:
    """Follows `addresses.parameters` and publishes on an address of its own, with a welcome and heartbeats of its own.

    While the learner is away, who connects here is still welcomed with its last parameters.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, config: Config, name: str, address: str) -> None:
        addresses = config.addresses
        upstream = client_keys(addresses, "parameters")
        self._publisher = ParameterPublisher(
            address, insecure=addresses.insecure, keys=server_keys(addresses, "parameters")
        )
        self._follower = ParameterFollower(addresses.parameters, None, experience_signature(config), upstream)
        self._reporter = StatusReporter("forwarder", name, secrets.randbits(63), config)
        log.info("forwarding %s to %s", addresses.parameters, address)

    def run(self, stop: threading.Event) -> None:
        """Forward until told to stop.

        Raises:
            MismatchError: the learner trains something else.
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
