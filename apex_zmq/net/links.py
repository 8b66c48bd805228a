"""The links of a run, one row each.

Everything that depends on a link reads this table: sockets and their options, the keys that `apex-keys` makes, the
doctor's checks, and the test of docs/PROTOCOL.md, section 1. A new link is a new row, a setting `addresses.<name>`,
and its use in a role.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apex_zmq.wire.codec import Kind

ROLES = ("actor", "replay", "learner", "evaluator", "forwarder")


@dataclass(frozen=True, slots=True)
class Link:
    """Roles, queues and socket options of one link.

    name: of the link, of the setting `addresses.<name>`, and of the channel that keys open or bind.
    pattern: push (PUSH connects, PULL binds) or publish (XPUB binds, SUB connects).
    binds, connects: roles at each end; by default, connect to the first role that binds.
    one_per: unit for which the setting lists one address each; None: one address in all.
    bound_queue, connected_queue: high-water mark at each end, in messages per peer, or the setting that holds it.
    kinds: message kinds of the link.
    kernel_bytes: SO_RCVBUF of the bound and SO_SNDBUF of the connected socket, in bytes; None: the OS default.
    patient: whether the receiver may stop reading for long without being disconnected (no ZMQ_TCP_MAXRT).
    linger_s: time for which a connected socket sends queued messages after closing, in seconds.
    """

    name: str
    pattern: Literal["push", "publish"]
    binds: tuple[str, ...]
    connects: tuple[str, ...]
    bound_queue: int
    connected_queue: int | Literal["replay.credits"]
    kinds: tuple[Kind, ...]
    one_per: Literal["shard", "rank"] | None = None
    kernel_bytes: int | None = None
    patient: bool = False
    linger_s: float = 0.0


LINKS = {
    link.name: link
    for link in (
        Link(
            "experience",
            "push",
            binds=("replay",),
            connects=("actor",),
            bound_queue=4,
            connected_queue=4,
            kinds=(Kind.SEGMENT, Kind.BYE),
            one_per="shard",
            kernel_bytes=1 << 18,  # with the default, megabytes of old segments queue in the kernel
            patient=True,  # the rate limiter of the replay may block actors for as long as the learner takes
            linger_s=1.0,
        ),
        Link(
            "batches",
            "push",
            binds=("learner",),
            connects=("replay",),
            bound_queue=4,
            connected_queue="replay.credits",
            kinds=(Kind.BATCH,),
            one_per="rank",
        ),
        Link(
            "priorities",
            "push",
            binds=("replay",),
            connects=("learner",),
            bound_queue=256,
            connected_queue=64,
            kinds=(Kind.PRIORITIES, Kind.HELLO),
            one_per="shard",
        ),
        Link(
            "parameters",
            "publish",
            binds=("learner", "forwarder"),
            connects=("actor", "evaluator", "forwarder"),
            bound_queue=8,
            connected_queue=8,
            kinds=(Kind.PARAMETERS, Kind.HEARTBEAT, Kind.RELAYED_STATUS),
        ),
        Link(
            "status",
            "push",
            binds=("learner",),
            connects=("actor", "replay", "forwarder"),
            bound_queue=1000,
            connected_queue=16,
            kinds=(Kind.STATUS,),
            linger_s=1.0,
        ),
    )
}
