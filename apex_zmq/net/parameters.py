"""Parameters on their way to the actors: newest wins, and who falls behind is welcomed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from apex_zmq.errors import UserError
from apex_zmq.net.keys import ClientKeys, ServerKeys
from apex_zmq.net.sockets import Inbox, Publisher, wait
from apex_zmq.signature import network_signature
from apex_zmq.types import Buffer
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Heartbeat, Parameters, decode_heartbeat, decode_parameters

log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]
HEARTBEAT_S = 1.0
BEHIND_S = 10.0  # a publication is this late before its follower reconnects
SILENT_S = 10.0  # a learner not heard for so long gives way to one of a lower incarnation


class MismatchError(UserError):
    """The learner trains something else than this process is set up for."""


class ParameterPublisher:
    """Sends the newest parameters to all, to whoever connects later as a welcome, and a heartbeat that names them.

    Call `serve` at least every 100 ms (see `Publisher`).

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, address: str, *, insecure: bool, keys: ServerKeys | None = None) -> None:
        self._publisher = Publisher(address, insecure=insecure, keys=keys)
        self._heartbeat: Heartbeat | None = None
        self._next_heartbeat = 0.0

    def publish(self, parameters: Parameters) -> None:
        """These are the newest."""
        (part,) = encode(Kind.PARAMETERS, parameters)
        self._publisher.welcome(part)
        self._heartbeat = Heartbeat(
            run=parameters.run,
            learner_incarnation=parameters.learner_incarnation,
            version=parameters.version,
            update=parameters.update,
        )

    def serve(self) -> None:
        """Welcome who has connected; send the heartbeat when it is due."""
        self._publisher.serve()
        now = time.monotonic()
        if self._heartbeat is not None and now >= self._next_heartbeat:
            self.send(encode(Kind.HEARTBEAT, self._heartbeat))
            self._next_heartbeat = now + HEARTBEAT_S

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send another message to all."""
        self._publisher.send(parts)

    def close(self) -> None:
        """Free the address."""
        self._publisher.close()


class ParameterFollower:
    """Subscribes to a learner and yields each newest set of parameters once.

    network, experience: signatures that the learner's must equal; network None: any.
    newest: the last Parameters taken (None before the first).
    """

    def __init__(self, address: str, network: str | None, experience: str, keys: ClientKeys | None = None) -> None:
        self.newest: Parameters | None = None
        self.received_at = 0.0  # monotonic seconds
        self._heard_at = 0.0  # the same, of any message of the newest's incarnation
        self._address = address
        self._keys = keys
        self._signatures = network, experience
        self._inbox = self._subscribe()
        self._behind_since: float | None = None

    def _subscribe(self) -> Inbox[tuple[Parameters, Arrays] | Heartbeat]:
        return Inbox.subscribe(
            self._address, {Kind.PARAMETERS: decode_parameters, Kind.HEARTBEAT: decode_heartbeat}, keys=self._keys
        )

    def poll(self, timeout_s: float = 0.0) -> Arrays | None:
        """The newest parameters by name, if any have come since the last call.

        Raises:
            MismatchError: the learner's network or experience is another.
        """
        if timeout_s:
            wait([self._inbox], [], timeout_s)
        taken: Arrays | None = None
        while (message := self._inbox.receive()) is not None:
            now = time.monotonic()
            if isinstance(message, Heartbeat):
                self._hear_heartbeat(message, now)
            elif self._is_newer(message[0], now):
                self.newest, taken = message
                self._check_signatures(self.newest, taken)
                self.received_at = self._heard_at = now
                self._behind_since = None
        return taken

    def _is_newer(self, message: Parameters | Heartbeat, now: float) -> bool:
        newest = self.newest
        if newest is None or (message.learner_incarnation, message.version) > (
            newest.learner_incarnation,
            newest.version,
        ):
            return True
        return message.learner_incarnation < newest.learner_incarnation and now - self._heard_at > SILENT_S

    def _hear_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        if self.newest is not None and heartbeat.learner_incarnation == self.newest.learner_incarnation:
            self._heard_at = now
        if not self._is_newer(heartbeat, now):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > BEHIND_S:
            log.warning("parameters stay behind the learner's version %d; connecting anew", heartbeat.version)
            self._inbox.close()
            self._inbox = self._subscribe()
            self._behind_since = None

    def _check_signatures(self, parameters: Parameters, arrays: Arrays) -> None:
        theirs = network_signature(arrays), parameters.experience_signature
        for what, ours, found in zip(("network", "experience"), self._signatures, theirs, strict=True):
            if ours is not None and ours != found:
                raise MismatchError(
                    f"the learner of run {parameters.run} publishes {what} signature {found}, ours is {ours}: "
                    "start this process with the learner's config"
                )

    def close(self) -> None:
        """Close the subscription."""
        self._inbox.close()
