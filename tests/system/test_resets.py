"""Clients that connect and reset thousands of times, to each bound port of a run with keys."""

from __future__ import annotations

import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apex_zmq.net.keys import make_client, make_servers

from ..conftest import ROOT, StartProgram, free_tcp_address

CONFIG = ROOT / "configs" / "cartpole.yaml"
PORTS = {
    "experience": "replay",
    "priorities": "replay",
    "batches": "learner",
    "parameters": "learner",
    "status": "learner",
}
THREADS = 4
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


def reset(address: str, count: int) -> int:
    """Connect and reset `count` times; return the number of accepted connections."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    connected = 0
    for _ in range(count):
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connected += stranger.connect_ex((host, int(port))) == 0
    return connected


def disturb(start: StartProgram, tmp_path: Path, resets: int) -> None:
    """Reset connections to each bound port of a run with keys; check that all roles continue and end with 0."""
    keys = tmp_path / "keys"
    make_servers(keys)
    make_client(keys, "actors", "actor")
    addresses = {name: free_tcp_address() for name in PORTS}
    common = ["--config", str(CONFIG), "--set", "replay.min_size=200", "--set", "run.episodes=null"]
    common += [argument for name, address in addresses.items() for argument in (f"--{name}", address)]
    replay = start("replay", *common, "--keys", str(keys / "replay"))
    learner = start("learner", *common, "--keys", str(keys / "learner"), "--run-dir", "run")
    actor = start("actor", *common, "--keys", str(keys / "actors"))
    learner.wait_for(r"updates [1-9]\d* ")
    with ThreadPoolExecutor(THREADS) as pool:
        for name in PORTS:
            assert sum(pool.map(reset, [addresses[name]] * THREADS, [resets // THREADS] * THREADS)) > resets / 2
            for program in (replay, learner, actor):
                assert program.process.poll() is None, program.output[-3000:]
    learner.wait_for(r"updates [1-9]\d* ", since=len(learner.lines))
    for program in (actor, replay, learner):
        program.interrupt()
        assert program.wait() == 0, program.output[-3000:]


def test_connection_resets_do_not_disturb_a_run(start: StartProgram, tmp_path: Path) -> None:
    disturb(start, tmp_path, 400)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_thirty_thousand_resets_per_port_do_not_disturb_a_run(start: StartProgram, tmp_path: Path) -> None:
    disturb(start, tmp_path, 30_000)
