"""The parameter stream: published by the learner, relayed by forwarders, received by subscribers."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import numpy.typing as npt
import zmq

from apex_zmq.errors import ConfigError, MismatchError
from apex_zmq.net.sockets import BoundSocket, Inbox, Links, wait
from apex_zmq.signature import network_signature
from apex_zmq.wire.body import Parts, encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Heartbeat, Parameters, decode_heartbeat, decode_parameters

log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]
HEARTBEAT_S = 1.0
BEHIND_S = 10.0  # delay of a publication after which its follower reconnects
SILENT_S = 10.0  # silence of a learner after which one of a lower incarnation is accepted
SUBSCRIPTIONS_PER_CALL = 1000  # limit, so that a flood of subscriptions cannot block the publisher


class ParameterPublisher:
    """Publishes the newest parameters, to subscribers and as the welcome message of later ones, and heartbeats.

    Call `serve` at least every 100 ms: libzmq sends a welcome only while subscriptions are being read.

    address: address to bind; None: `addresses.parameters`.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, links: Links, address: str | None = None) -> None:
        self._links, self._address = links, address
        self._welcome: bytes | None = None
        self._heartbeat: Heartbeat | None = None
        self._next_heartbeat = 0.0
        self._bound: BoundSocket | None = self._bind()

    def _bind(self) -> BoundSocket:
        return self._links.publish("parameters", self._welcome, self._address)

    def publish(self, parameters: Parameters) -> None:
        """Publish new parameters."""
        (part,) = encode(Kind.PARAMETERS, parameters)
        self._welcome = bytes(part)
        if self._bound is not None:
            self._bound.socket.setsockopt(zmq.XPUB_WELCOME_MSG, self._welcome)
        self.send([part])
        self._heartbeat = Heartbeat(
            run=parameters.run,
            learner_incarnation=parameters.learner_incarnation,
            version=parameters.version,
            update=parameters.update,
        )

    def send(self, parts: Parts) -> None:
        """Send a message to all subscribers of its kind; it is dropped for those with a full queue."""
        if self._bound is not None:
            self._bound.socket.send_multipart(parts, copy=False)

    def serve(self) -> None:
        """Read new subscriptions, disconnect subscribers with a revoked key, and send the heartbeat if it is due."""
        self._disconnect_revoked()
        for _ in range(SUBSCRIPTIONS_PER_CALL):
            if self._bound is None or not self._bound.socket.poll(0):
                break
            self._bound.socket.recv_multipart()
        now = time.monotonic()
        if self._heartbeat is not None and now >= self._next_heartbeat:
            self.send(encode(Kind.HEARTBEAT, self._heartbeat))
            self._next_heartbeat = now + HEARTBEAT_S

    def _disconnect_revoked(self) -> None:
        """Bind again after a key was revoked: XPUB cannot end one connection or name its peer.

        libzmq frees a TCP port some time after closing the socket; until then each call tries once.
        """
        if self._bound is not None and self._bound.authenticator is not None and self._bound.authenticator.revoked:
            self._bound.close()
            self._bound = None
        if self._bound is None:
            with contextlib.suppress(ConfigError):
                self._bound = self._bind()

    def close(self) -> None:
        """Close the socket and release its address."""
        if self._bound is not None:
            self._bound.close()


class ParameterFollower:
    """Subscribes to `addresses.parameters` and returns each newest set of parameters once.

    network, experience: required signatures of the learner's; network None: any.
    newest: newest Parameters; None before the first. received_at: their arrival, in monotonic seconds.
    """

    def __init__(self, links: Links, network: str | None, experience: str) -> None:
        self.newest: Parameters | None = None
        self.received_at = 0.0
        self._last_message_at = 0.0  # monotonic seconds, of the same incarnation
        self._links = links
        self._signatures = network, experience
        self._inbox = self._subscribe()
        self._behind_since: float | None = None

    def _subscribe(self) -> Inbox[tuple[Parameters, Arrays] | Heartbeat]:
        return self._links.subscribe(
            "parameters", {Kind.PARAMETERS: decode_parameters, Kind.HEARTBEAT: decode_heartbeat}
        )

    def poll(self, timeout_s: float = 0.0) -> Arrays | None:
        """Return the newest parameters by name; None if none have arrived since the last call.

        Raises:
            MismatchError: the learner has another network, experience or version of the protocol.
        """
        if timeout_s:
            wait([self._inbox], [], timeout_s)
        taken: Arrays | None = None
        while (message := self._inbox.receive()) is not None:
            now = time.monotonic()
            if isinstance(message, Heartbeat):
                self._handle_heartbeat(message, now)
            elif self._is_newer(message[0], now):
                self.newest, taken = message
                self._check_signatures(self.newest, taken)
                self.received_at = self._last_message_at = now
                self._behind_since = None
        self._inbox.check_version("learner")
        return taken

    def _is_newer(self, message: Parameters | Heartbeat, now: float) -> bool:
        newest = self.newest
        if newest is None or (message.learner_incarnation, message.version) > (
            newest.learner_incarnation,
            newest.version,
        ):
            return True
        return message.learner_incarnation < newest.learner_incarnation and now - self._last_message_at > SILENT_S

    def _handle_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        if self.newest is not None and heartbeat.learner_incarnation == self.newest.learner_incarnation:
            self._last_message_at = now
        if not self._is_newer(heartbeat, now):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > BEHIND_S:
            log.warning("parameters are older than the learner's version %d; reconnecting", heartbeat.version)
            self._inbox.close()
            self._inbox = self._subscribe()
            self._behind_since = None

    def _check_signatures(self, parameters: Parameters, arrays: Arrays) -> None:
        theirs = network_signature(arrays), parameters.experience_signature
        for name, ours, found in zip(("network", "experience"), self._signatures, theirs, strict=True):
            if ours is not None and ours != found:
                raise MismatchError(
                    f"the learner of run {parameters.run} publishes {name} signature {found}, ours is {ours}; "
                    "start this process with the learner's config"
                )

    def close(self) -> None:
        """Close the subscription."""
        self._inbox.close()
