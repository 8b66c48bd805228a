"""A peer sends garbage of every kind to a replay and a learner in training: they go on, and so do the good peers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import zmq

from apex_zmq.config import loading
from apex_zmq.rundir.checkpoint import load
from apex_zmq.signature import experience_signature
from apex_zmq.wire.codec import Kind
from benchmarks import fuzz

from ..conftest import ROOT, Program, StartProgram, free_tcp_address

CONFIG = ROOT / "configs" / "cartpole.yaml"
ROUNDS = 25  # of one message of each kind to each address
GROWTH_BYTES = 300 << 20
LINKS = {"experience": zmq.PUSH, "priorities": zmq.PUSH, "batches": zmq.PUSH, "status": zmq.PUSH}


def rss_bytes(program: Program) -> int:
    return int(psutil.Process(program.process.pid).memory_info().rss)


def signed(target: fuzz.Target) -> fuzz.Target:
    """With this run's signature where that is all that keeps it from being looked at; a HELLO would be obeyed."""
    if target.kind is not Kind.SEGMENT:
        return target
    body = target.body | {"signature": experience_signature(loading.load(CONFIG))}
    valid = [fuzz.headed(target.kind, msgspec.msgpack.encode(body)), *target.valid[1:]]
    return fuzz.Target(target.name, valid, target.decode, target.take)


def garbage(rng: random.Random) -> Iterator[list[bytes]]:
    """One message of each kind."""
    for target in TARGETS:
        yield rng.choice(fuzz.MUTATIONS)(rng, target) if rng.random() < 0.9 else target.valid


TARGETS = [signed(target) for target in fuzz.targets()]


def flood(addresses: dict[str, str]) -> int:
    """Messages sent; none waits for room."""
    rng = random.Random(0)
    peers: dict[str, zmq.Socket[bytes]] = {}
    sent = 0
    try:
        for name, kind in LINKS.items():
            peers[name] = zmq.Context.instance().socket(kind)
            peers[name].setsockopt(zmq.LINGER, 2000)
            peers[name].connect(addresses[name])
            peers[name].send_multipart([b""] * 20_000)
        for _ in range(ROUNDS):
            for peer in peers.values():
                for parts in garbage(rng):
                    if peer.poll(10, zmq.POLLOUT):
                        peer.send_multipart(parts)
                        sent += 1
        listener: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XSUB)
        peers["parameters"] = listener
        listener.setsockopt(zmq.LINGER, 2000)
        listener.connect(addresses["parameters"])
        for _ in range(2000):
            listener.send(rng.choice((b"\x00", b"\x01", b"\x05", b"")) + rng.randbytes(rng.randrange(64)))
    finally:
        for peer in peers.values():
            peer.close()
    return sent


def test_garbage_messages_do_not_disturb_training(start: StartProgram, tmp_path: Path) -> None:
    addresses = {name: free_tcp_address() for name in (*LINKS, "parameters")}
    common = ["--config", str(CONFIG), "--set", "replay.min_size=200", "--set", "run.episodes=null"]
    common += [argument for name, address in addresses.items() for argument in (f"--{name}", address)]
    replay = start("replay", *common)
    learner = start("learner", *common, "--run-dir", "run", "--set", "run.max_updates=600")
    actor = start("actor", *common)
    replay.wait_for("sending batches to learner of run")
    learner.wait_for(r" replay [1-9]")  # the first segment that a shard stores decides what frames are
    before = {program: rss_bytes(program) for program in (replay, learner)}
    assert flood(addresses) > ROUNDS * len(TARGETS)
    for program in (replay, learner):
        program.wait_for("refused a message from 127.0.0.1")
        if program.process.poll() is None:
            assert rss_bytes(program) - before[program] < GROWTH_BYTES
    assert learner.wait() == 0, learner.output
    assert "budget spent: 600 of 600 updates" in learner.output
    assert replay.process.poll() is None
    assert actor.process.poll() is None
    for program in (replay, actor):
        program.interrupt()
        assert program.wait() == 0
    for output in (replay.output, learner.output, actor.output):
        assert not re.search(r"Traceback|update \d+ skipped", output)
    checkpoint = load(tmp_path / "run")
    assert all(np.isfinite(tensor.numpy()).all() for tensor in checkpoint.tensors["online"].values())
