"""Checks against a live run: protocol version, signatures, clocks, missing roles, refusals."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from typing import NamedTuple

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.net.access import probe
from apex_zmq.net.keys import client_keys
from apex_zmq.net.sockets import Links
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.watch.doctor.addresses import HANDSHAKE_S, connect_address
from apex_zmq.watch.doctor.check import Check
from apex_zmq.watch.metrics import REFUSALS
from apex_zmq.wire import messages
from apex_zmq.wire.codec import Kind, version_text
from apex_zmq.wire.messages import Parameters, Status

SILENT_S = 3.0  # a live learner publishes every second
POLL_S = 0.1
OBSERVED_INTERVALS = 2.5  # status intervals, so that every process reports twice
OFFSET_WARN_S = 1.0  # smaller clock offsets may be message delays
OFFSET_FAIL_S = 10.0  # larger ones make the time stamps of a run useless
DECODERS = {
    Kind.PARAMETERS: messages.decode_parameters,
    Kind.HEARTBEAT: messages.decode_heartbeat,
    Kind.RELAYED_STATUS: messages.decode_relayed_status,
}
# Counters of a status that grow while a process does not fit the run, and their meaning.
FAULTS = {name: f"refuses {refused}" for name, refused in REFUSALS.items()}
FAULTS["failed_handshakes"] = "is refused by a server"


class Peer(NamedTuple):
    """A process of the run. first, last: statuses received from it.

    behind_s: seconds by which its clock is behind this host's: the minimum over its statuses, because delays add to it.
    """

    first: Status
    last: Status
    behind_s: float

    @property
    def label(self) -> str:
        """Name and host."""
        return f"{self.last.name} on {self.last.host}"


class Observation(NamedTuple):
    """Messages received from a learner.

    parameters, network: the newest PARAMETERS, and the signature of its network. decode_error: of the newest message
    that cannot be decoded; empty: all can.
    """

    parameters: Parameters | None
    network: str
    peers: Collection[Peer]
    decode_error: str


def check_run(config: Config, network: str | None) -> Iterator[Check]:
    """Check that this host agrees with the live processes of the run. network: its signature; None: it needs none."""
    experience = experience_signature(config)
    ours = f"experience {experience}" + (f", network {network}" if network else "")
    try:
        keys = client_keys(config.addresses, "parameters")
    except ConfigError:
        found = f"{ours}; not compared: these keys do not open the learner's parameters"
        yield Check("signatures", "warn", found, "run apex-doctor with the keys of an actor or an evaluator")
        return
    address = connect_address(config.addresses.parameters)
    if address is None or probe(address, keys, publishes=True, timeout_s=HANDSHAKE_S) is not None:
        found = f"{ours}; not compared: no learner is running"
        yield Check("signatures", "warn", found, "run apex-doctor again during the run; it then checks clocks too")
        return
    observation = observe(loading.replace(config, {"addresses.parameters": address}))
    yield check_protocol(observation)
    if observation.parameters is not None:
        yield check_signatures(observation.parameters, observation.network, experience, network)
    if observation.peers:
        yield check_clocks(observation.peers)
        yield check_peers(observation.peers, config.replay.shards)


def observe(config: Config) -> Observation:
    """Receive the learner's messages until every role has reported twice; wait `SILENT_S` longer for missing ones."""
    observed_s = OBSERVED_INTERVALS * config.telemetry.status_interval_s
    parameters, network = None, ""
    peers: dict[int, Peer] = {}
    started = time.monotonic()
    deadline = started + SILENT_S
    with closing(Links(config).subscribe("parameters", DECODERS)) as inbox:
        while (now := time.monotonic()) < deadline:
            complete = parameters is not None and not _missing(peers.values(), config.replay.shards)
            if complete and now - started > observed_s:
                break
            message = inbox.receive(min(POLL_S, deadline - now))
            if message is None:
                continue
            deadline = started + observed_s + SILENT_S
            if isinstance(message, Status):
                behind_s = time.time() - message.time
                known = peers.get(message.incarnation, Peer(message, message, behind_s))
                peers[message.incarnation] = Peer(known.first, message, min(known.behind_s, behind_s))
            elif isinstance(message, tuple):
                parameters, network = message[0], network_signature(message[1])
        return Observation(parameters, network, peers.values(), inbox.newest_refusal)


def check_protocol(observation: Observation) -> Check:
    """Check that the learner's messages can be decoded."""
    if observation.decode_error:
        found = f"messages of the learner cannot be decoded: {observation.decode_error}"
        return Check("protocol", "fail", found, "install the same version of apex_zmq on all hosts")
    if observation.parameters is None:
        found = "the learner publishes no parameters: it is starting, or hangs"
        return Check("protocol", "warn", found, "read the learner's log")
    run = observation.parameters.run
    return Check("protocol", "ok", f"version {version_text()}, like the learner of run {run}")


def check_signatures(parameters: Parameters, their_network: str, experience: str, network: str | None) -> Check:
    """Check that the learner trains on the environment and the network of this host. network: None: it has none."""
    pairs = [("experience", parameters.experience_signature, experience)]
    if network is not None:
        pairs.append(("network", their_network, network))
    differing = [f"{name} {theirs}, ours is {ours}" for name, theirs, ours in pairs if theirs != ours]
    if differing:
        found = f"the learner of run {parameters.run} has {'; '.join(differing)}"
        remedy = "use the learner's config: env, agent.n_step, agent.gamma or agent.network differ"
        return Check("signatures", "fail", found, remedy)
    return Check("signatures", "ok", ", ".join(f"{name} {ours}" for name, _, ours in pairs) + ", like the learner's")


def check_clocks(peers: Collection[Peer]) -> Check:
    """Check that the clocks of the run's hosts agree with this one."""
    learners = [peer for peer in peers if peer.last.role == "learner"]
    if not learners:
        remedy = "use the learner's config: telemetry.status_interval_s is the interval between statuses"
        return Check("clock", "warn", "no status of the learner has been received", remedy)
    worst = max(peers, key=lambda peer: abs(peer.behind_s))
    offset_s = abs(worst.behind_s)
    shown = [learners[-1]]
    if offset_s > OFFSET_WARN_S and worst is not learners[-1]:
        shown.append(worst)
    found = ", ".join(
        f"{peer.label} is {abs(peer.behind_s):.1f} s {'behind' if peer.behind_s > 0 else 'ahead'}" for peer in shown
    )
    if offset_s <= OFFSET_WARN_S:
        return Check("clock", "ok", found)
    remedy = "synchronize the clocks by NTP (timedatectl set-ntp true)"
    return Check("clock", "fail" if offset_s > OFFSET_FAIL_S else "warn", found, remedy)


def check_peers(peers: Collection[Peer], shards: int) -> Check:
    """Check that every role is running, and that no process refuses another."""
    counts = Counter(peer.last.role for peer in peers)
    found = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for role, count in sorted(counts.items()))
    if faults := [fault for peer in peers for fault in _faults(peer)]:
        return Check("peers", "warn", f"{found}; {', '.join(faults)}", "read its log, which names peer and reason")
    if missing := _missing(peers, shards):
        return Check("peers", "warn", f"{found}; too few: {', '.join(missing)}", "start them, or read their logs")
    return Check("peers", "ok", found)


def _faults(peer: Peer) -> Iterator[str]:
    """Refusals that a process has reported between its first and its last status."""
    for metric, fault in FAULTS.items():
        if peer.last.metrics.get(metric, 0) > peer.first.metrics.get(metric, 0):
            yield f"{peer.label} {fault}"
    for each in peer.last.refusals:
        if each not in peer.first.refusals:
            yield f"{peer.label} refuses segments of {each.actor!r}: {each.reason!r}"


def _missing(peers: Collection[Peer], shards: int) -> list[str]:
    """The roles with fewer processes than a run has."""
    counts: Counter[str] = Counter(peer.last.role for peer in peers)
    return [role for role, least in (("learner", 1), ("replay", shards), ("actor", 1)) if counts[role] < least]
