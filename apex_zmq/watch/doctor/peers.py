"""Checks against a live run: protocol, signatures, clocks, missing and refusing processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import numpy.typing as npt

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.net.access import probe
from apex_zmq.net.keys import client_keys
from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.watch.doctor import links
from apex_zmq.watch.doctor.addresses import HANDSHAKE_S
from apex_zmq.watch.doctor.check import Check, Level
from apex_zmq.watch.metrics import REFUSALS
from apex_zmq.wire.codec import Kind, version_text
from apex_zmq.wire.messages import (
    Heartbeat,
    Parameters,
    Status,
    decode_heartbeat,
    decode_parameters,
    decode_relayed_status,
)

SILENT_S = 3.0  # a live learner publishes every second
TURN_S = 0.1
ROUNDS = 2.5  # status intervals, so that every process reports twice
OFFSET_S, OFFSET_MAX_S = 1.0, 10.0  # between clocks: what delays may feign, and what makes times of a run worthless
# Counters of a status that grow while peers do not fit, and what they mean.
FAULTS = {name: f"refuses {what}" for name, what in REFUSALS.items()} | {
    "failed_handshakes": "is refused by its server"
}


class Heard(NamedTuple):
    """The messages of a learner during one observation.

    parameters, network: the newest, and the signature of what they hold. statuses: the first and the last of each
    process, by incarnation. behind_s: by incarnation, seconds by which its clock is behind this one; the least seen,
    since delays add to it. complaint: why the newest message that could not be read could not.
    """

    parameters: Parameters | None
    network: str
    statuses: Mapping[int, tuple[Status, Status]]
    behind_s: Mapping[int, float]
    complaint: str


def check_run(config: Config, network: str | None) -> Iterator[Check]:
    """Whether this host agrees with the live processes of the run.

    network: signature of this host's; None: it needs none.
    """
    address, experience = config.addresses.parameters, experience_signature(config)
    mine = f"experience {experience}" + (f", network {network}" if network else "")
    try:
        keys = client_keys(config.addresses, "parameters")
    except ConfigError:
        found = f"{mine}; these keys do not open the learner's parameters, to compare with"
        yield Check("signatures", "warn", found, "ask with those of an actor or an evaluator")
        return
    up = links.resolves(address) and probe(links.target(address), keys, publishes=True, timeout_s=HANDSHAKE_S) is None
    if not up:
        found = f"{mine}; no learner is up to compare with"
        yield Check("signatures", "warn", found, "ask again once it is, for protocol and clocks too")
        return
    heard = listen(loading.replace(config, {"addresses.parameters": links.target(address)}))
    yield check_protocol(heard)
    if heard.parameters is not None:
        yield check_signatures(heard.parameters, heard.network, experience, network)
    if heard.statuses:
        yield check_clocks(heard)
        yield check_peers(heard, config.replay.shards)


def listen(config: Config) -> Heard:
    """Listen to the learner until all roles have told how they are, or what is missing has had its time."""
    interval_s = config.telemetry.status_interval_s
    parameters, network = None, ""
    statuses: dict[int, tuple[Status, Status]] = {}
    behind_s: dict[int, float] = {}
    started = time.monotonic()
    deadline = started + SILENT_S
    inbox: Inbox[tuple[Parameters, dict[str, npt.NDArray[Any]]] | Heartbeat | Status] = Links(config).subscribe(
        "parameters",
        {
            Kind.PARAMETERS: decode_parameters,
            Kind.HEARTBEAT: decode_heartbeat,
            Kind.RELAYED_STATUS: decode_relayed_status,
        },
    )
    with closing(inbox):
        while (now := time.monotonic()) < deadline:
            heard_twice = now - started > ROUNDS * interval_s
            if heard_twice and parameters is not None and not _missing(statuses, config.replay.shards):
                break
            message = inbox.receive(min(TURN_S, deadline - now))
            if message is None:
                continue
            deadline = started + ROUNDS * interval_s + SILENT_S
            if isinstance(message, Status):
                first, _ = statuses.get(message.incarnation, (message, message))
                statuses[message.incarnation] = first, message
                age_s = time.time() - message.time
                behind_s[message.incarnation] = min(age_s, behind_s.get(message.incarnation, age_s))
            elif not isinstance(message, Heartbeat):
                parameters, network = message[0], network_signature(message[1])
        return Heard(parameters, network, statuses, behind_s, inbox.newest_refusal)


def check_protocol(heard: Heard) -> Check:
    """Whether the learner's messages can be decoded."""
    if heard.complaint:
        found = f"messages of the learner cannot be read: {heard.complaint}"
        return Check("protocol", "fail", found, "install the same apex_zmq on all hosts")
    if heard.parameters is None:
        return Check("protocol", "warn", "the learner publishes no parameters", "it begins, or hangs: read its log")
    return Check("protocol", "ok", f"version {version_text()}, as the learner of run {heard.parameters.run}")


def check_signatures(parameters: Parameters, their_network: str, experience: str, network: str | None) -> Check:
    """Whether the learner trains what this host is set up for."""
    pairs = [("experience", parameters.experience_signature, experience)]
    if network is not None:
        pairs.append(("network", their_network, network))
    differing = [f"{what} {theirs}, ours is {ours}" for what, theirs, ours in pairs if theirs != ours]
    if differing:
        found = f"the learner of run {parameters.run} has {'; '.join(differing)}"
        return Check("signatures", "fail", found, "give the learner's config: env, agent.n_step, gamma, network differ")
    return Check("signatures", "ok", ", ".join(f"{what} {ours}" for what, _, ours in pairs) + ", as the learner's")


def check_clocks(heard: Heard) -> Check:
    """Whether the clocks of learner and others agree with this one."""
    last = {incarnation: status for incarnation, (_, status) in heard.statuses.items()}
    learners = [incarnation for incarnation, status in last.items() if status.role == "learner"]
    if not learners:
        return Check(
            "clock",
            "warn",
            "the learner has not told its own",
            "ask with its config: telemetry.status_interval_s says how often it does",
        )
    worst = max(heard.behind_s, key=lambda incarnation: abs(heard.behind_s[incarnation]))
    off_s = abs(heard.behind_s[worst])
    told = dict.fromkeys([learners[-1], *([worst] if off_s > OFFSET_S else [])])
    found = ", ".join(
        f"{last[incarnation].name} on {last[incarnation].host} is {_offset(heard.behind_s[incarnation])}"
        for incarnation in told
    )
    if off_s > OFFSET_S:
        level: Level = "fail" if off_s > OFFSET_MAX_S else "warn"
        return Check("clock", level, found, "set the clocks by NTP (timedatectl set-ntp true)")
    return Check("clock", "ok", found)


def _offset(behind_s: float) -> str:
    return f"{abs(behind_s):.1f} s {'behind' if behind_s > 0 else 'ahead'}"


def check_peers(heard: Heard, shards: int) -> Check:
    """Whether every role is up, and no process refuses another."""
    counts = Counter(status.role for status, _ in heard.statuses.values())
    found = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for role, count in sorted(counts.items()))
    missing = _missing(heard.statuses, shards)
    complaints = [
        f"{last.name} on {last.host} {what}"
        for first, last in heard.statuses.values()
        for metric, what in FAULTS.items()
        if last.metrics.get(metric, 0) > first.metrics.get(metric, 0)
    ]
    complaints += [
        f"{last.name} on {last.host} refuses segments of {each.actor!r}: {each.reason!r}"
        for first, last in heard.statuses.values()
        for each in last.refusals
        if each not in first.refusals
    ]
    if complaints:
        return Check("peers", "warn", f"{found}; {', '.join(complaints)}", "read its log: it names peer and reason")
    if missing:
        return Check(
            "peers", "warn", f"{found}; too few are heard: {', '.join(missing)}", "start them, or read their logs"
        )
    return Check("peers", "ok", found)


def _missing(statuses: Mapping[int, tuple[Status, Status]], shards: int) -> list[str]:
    """The roles of which fewer were heard than a run has."""
    counts: Counter[str] = Counter(status.role for status, _ in statuses.values())
    return [role for role, least in (("learner", 1), ("replay", shards), ("actor", 1)) if counts[role] < least]
