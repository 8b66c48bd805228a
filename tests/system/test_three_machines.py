"""docs/SEVERAL_MACHINES.md tried: three hosts, which are network namespaces of this machine, and the page's commands.

A stranger tries to connect in between.

The hosts have addresses of their own and hang on a bridge that stands in a fourth namespace: nothing leaves them.
Each has a working directory of its own, so that files cannot stand in for messages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zmq.auth import load_certificate

from apex_zmq.net.keys import make_client, make_servers
from apex_zmq.rundir.checkpoint import load

from ..conftest import ROOT, Program

PAGE = (ROOT / "docs" / "SEVERAL_MACHINES.md").read_text()
ADDRESSES = dict(re.findall(r"^\| (replay|learner|actors) \| ([\d.]+) \|", PAGE, re.MULTILINE))
UPDATES = 1000  # what the page sets
STOP_S = 20.0
FETCH_WHEN_FILLED = """
import sys, time, urllib.request
while (answer := urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1]).read()) == b"[]":
    time.sleep(0.5)  # TensorBoard looks for new runs every few seconds
print(answer.decode())
"""

# Connects to an address with keys that its server does not list, until it has been refused.
STRANGER = """
import sys, time
from apex_zmq.net import access
from apex_zmq.config.settings import Addresses, Config
from apex_zmq.net.sockets import Links
stranger = Links(Config(addresses=Addresses(keys=sys.argv[1], status=sys.argv[2]))).connect("status")
while not access.counts["failed_handshakes"]:
    time.sleep(0.05)
"""


def commands(heading: str) -> str:
    """The shell commands below a heading of the page."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"SEVERAL_MACHINES.md has no section {heading}"
    return "".join(re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL))


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@dataclass
class Host:
    """A network namespace, and a checkout of its own to work in."""

    namespace: str
    directory: Path
    programs: list[Program] = field(default_factory=list)

    def terminal(self, script: str) -> Program:
        """A terminal in which somebody pastes a script."""
        bash = ["ip", "netns", "exec", self.namespace, "bash", "-e", "-o", "pipefail", "-c", script]
        self.programs.append(Program.of(bash, self.directory))
        return self.programs[-1]

    def ask(self, *command: str) -> str:
        """The output of a command that runs here."""
        command = ("ip", "netns", "exec", self.namespace, *command)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def shut_down(self) -> None:
        """End every process of this host, and nobody else's."""
        give_up = time.monotonic() + STOP_S
        while pids := ip("netns", "pids", self.namespace).split():
            for pid in map(int, pids):
                with_force = time.monotonic() > give_up
                try:
                    os.kill(pid, signal.SIGKILL if with_force else signal.SIGTERM)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        for program in self.programs:
            program.wait()


def build(hosts: dict[str, Host], switch: str) -> None:
    """Make the namespaces, and a bridge between them."""
    ip("netns", "add", switch)
    ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    ip("-n", switch, "link", "set", "bridge", "up")
    for name, host in hosts.items():
        ip("netns", "add", host.namespace)
        ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
        ip("-n", switch, "link", "set", name, "master", "bridge", "up")
        ip("-n", host.namespace, "address", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", host.namespace, "link", "set", link, "up")
        host.directory.mkdir()
        for part in ("bin", "configs"):
            (host.directory / part).symlink_to(ROOT / part)
        (host.directory / ".venv").symlink_to(sys.prefix)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Host]]:
    """Three hosts on one network; taken down whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need iproute2's `ip`")
    for name in [name for name in os.environ if name.startswith("APEX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    prefix = f"apex-{os.getpid()}"
    switch = f"{prefix}-switch"
    hosts = {name: Host(f"{prefix}-{name}", tmp_path / name) for name in ADDRESSES}
    namespaces = [switch, *(host.namespace for host in hosts.values())]
    try:
        try:
            build(hosts, switch)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield hosts
    finally:
        made = [namespace for namespace in namespaces if Path("/run/netns", namespace).exists()]
        try:
            for host in hosts.values():
                if host.namespace in made:
                    host.shut_down()
        finally:
            for namespace in made:
                ip("netns", "delete", namespace)


def hand_out_keys(hosts: dict[str, Host], every: str) -> list[bytes]:
    """Make them on the learner's host and copy them, as the page says; the secrets."""
    assert hosts["learner"].terminal(every + commands("Keys")).wait() == 0
    made = hosts["learner"].directory / "keys"
    for name in ("replay", "actors"):
        shutil.copytree(made / name, hosts[name].directory / "keys" / name)
        assert f"keys/{name} {ADDRESSES[name]}:" in PAGE
    found = [load_certificate(path)[1] for path in made.glob("*/identity.key_secret")]
    return [secret for secret in found if secret is not None]


def make_stranger(hosts: dict[str, Host], directory: Path) -> Path:
    """Keys of an actor of another run, who knows this run's servers."""
    make_servers(directory)
    stranger = make_client(directory, "mallory", "actor")
    shutil.copy(hosts["actors"].directory / "keys" / "actors" / "servers", stranger)
    return stranger


@pytest.mark.timeout(600)  # seven processes and TensorBoard take their time where cores are few
def test_walkthrough_trains_on_three_hosts(hosts: dict[str, Host], tmp_path: Path) -> None:
    assert set(ADDRESSES) == {"replay", "learner", "actors"}
    every = commands("2. In every terminal")
    secrets = hand_out_keys(hosts, every)
    board = hosts["learner"].terminal(every + commands("TensorBoard"))
    replay = hosts["replay"].terminal(every + commands("3. The replay host"))
    learner = hosts["learner"].terminal(every + commands("4. The learner host"))
    actors = hosts["actors"].terminal(every + commands("5. The actor host"))

    stranger = make_stranger(hosts, tmp_path / "another run")
    hosts["actors"].ask(sys.executable, "-c", STRANGER, str(stranger), f"tcp://{ADDRESSES['learner']}:5555")
    learner.wait_for(f"refused a connection from {ADDRESSES['actors']}: .*is not in")

    assert learner.wait() == 0, "".join(host.output for host in (learner, replay, actors))
    assert f"budget spent: {UPDATES} of {UPDATES} updates" in learner.output
    run = hosts["learner"].directory / "checkpoints" / "three-hosts"
    counters = load(run).counters
    assert counters["updates"] == UPDATES
    assert counters["episodes"] > 0
    curves = EventAccumulator(str(run), size_guidance={"scalars": 0})
    curves.Reload()
    assert max(event.value for event in curves.Scalars("actors/count")) == 2
    assert max(event.value for event in curves.Scalars("replay/size")) >= 1000

    # The logs can be followed where they are written, and say nothing bad.
    replay.wait_for("sending batches to learner of run")
    for number in (1, 2):
        log = (hosts["actors"].directory / f"actor-{number}.log").read_text()
        assert "playing 8 lanes" in log
    actors.wait_for("playing 8 lanes")
    output = replay.output + learner.output + actors.output
    assert not re.search("Traceback|ERROR|no access to", output)
    assert {line for line in output.splitlines() if "refused" in line and ADDRESSES["actors"] not in line} == set()

    # Secrets stay where they are.
    for host in hosts.values():
        assert not any(secret.decode() in program.output for program in host.programs for secret in secrets)
        for path in host.directory.rglob("*"):
            if path.is_file() and "keys" not in path.relative_to(host.directory).parts:
                content = path.read_bytes()
                assert not any(secret in content for secret in secrets), path

    # TensorBoard on the learner answers another host, which itself needs no open port.
    board.wait_for("http://")
    url = f"http://{ADDRESSES['learner']}:6006/data/runs"
    runs = hosts["actors"].ask(sys.executable, "-c", FETCH_WHEN_FILLED, url)
    assert json.loads(runs) == ["three-hosts"]
    assert hosts["actors"].ask("ss", "--no-header", "--listening", "--tcp") == ""


def test_page_has_the_updates_and_addresses_of_the_test() -> None:
    assert f"run.max_updates={UPDATES}" in commands("4. The learner host")
    every = commands("2. In every terminal")
    assert f"REPLAY={ADDRESSES['replay']} LEARNER={ADDRESSES['learner']}" in every
