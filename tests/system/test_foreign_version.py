"""Programs of a run of another major version of the protocol end with 2 and say what to install."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing

from apex_zmq.net.sockets import BoundSocket, Inbox, Outbox, wait
from apex_zmq.wire.codec import PROTOCOL_VERSION, Kind

from ..channels import PATIENCE_S, links_of
from ..conftest import ROOT, Program, StartProgram, free_tcp_address

CONFIG = ("--config", str(ROOT / "configs" / "cartpole.yaml"))
OURS = "{}.{}".format(*PROTOCOL_VERSION)


def foreign(kind: Kind) -> bytes:
    """A message of version 9.2."""
    return bytes([kind, 9, 0, 2]) + bytes(4)


def until_it_ends(program: Program, peer: str, action: Callable[[], object]) -> None:
    """Repeat an action until the program has ended as it should."""
    deadline = time.monotonic() + PATIENCE_S
    while program.process.poll() is None:
        assert time.monotonic() < deadline, program.output
        action()
        time.sleep(0.05)  # no flood
    assert program.wait() == 2, program.output
    assert re.search(rf"the {peer} speaks protocol 9\.2, this program {OURS}; install the same", program.output)


def send(outbox: Outbox, message: bytes) -> None:
    wait([], [outbox], 0.1)
    outbox.send([message])


def test_actor_ends_when_its_learner_has_another_version(start: StartProgram) -> None:
    address = free_tcp_address()
    publisher: BoundSocket = links_of(parameters=address).publish("parameters")
    with closing(publisher):
        actor = start("actor", *CONFIG, "--parameters", address)
        until_it_ends(actor, "learner", lambda: publisher.socket.send(foreign(Kind.HEARTBEAT)))


def test_shard_sends_its_version_to_the_learner_and_ends(start: StartProgram) -> None:
    addresses = {name: free_tcp_address() for name in ("experience", "priorities", "batches")}
    batches: Inbox[object] = links_of(batches=addresses["batches"]).bind("batches", {})
    learner = links_of(priorities=addresses["priorities"]).connect("priorities")
    with closing(batches), closing(learner):
        replay = start("replay", *CONFIG, *(word for name in addresses for word in (f"--{name}", addresses[name])))
        until_it_ends(replay, "learner", lambda: send(learner, foreign(Kind.HELLO)))
        wait([batches], [], PATIENCE_S)
        kind, major, _, minor = batches.socket.recv_multipart()[0][:4]
        assert (kind, major, minor) == (Kind.BATCH, *PROTOCOL_VERSION)


def test_a_learner_ends_when_its_shards_speak_another_version(start: StartProgram) -> None:
    addresses = {name: free_tcp_address() for name in ("batches", "parameters", "status", "priorities")}
    replay = links_of(batches=addresses["batches"]).connect("batches")
    with closing(replay):
        settings = (word for name in addresses for word in (f"--{name}", addresses[name]))
        learner = start("learner", *CONFIG, "--run-dir", "run", *settings)
        until_it_ends(learner, "replay", lambda: send(replay, foreign(Kind.BATCH)))
