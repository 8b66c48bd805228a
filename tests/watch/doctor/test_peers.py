"""Checks against a live run, with a publisher in place of the learner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import Buffer
from apex_zmq.watch.doctor import peers
from apex_zmq.watch.doctor.check import Check
from apex_zmq.watch.doctor.peers import check_run
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import PROTOCOL_VERSION, Kind
from apex_zmq.wire.messages import Parameters, Role, Status, make_tensors

from ...channels import publisher_of
from ...conftest import free_tcp_address

ARRAYS = {"weight": np.ones(3, np.float32)}
NETWORK, EXPERIENCE = network_signature(ARRAYS), experience_signature(Config())
SERVE_S = 0.02


@dataclass
class Learner:
    """Publishes what a learner would.

    version: of the protocol; None: this one. behind_s: by role and name of each process, seconds by which its clock is
    behind. refusing: name of a process whose count of refused messages grows.
    """

    experience: str = EXPERIENCE
    version: int | None = None
    publishes: bool = True
    behind_s: dict[tuple[Role, str], float] = field(
        default_factory=lambda: {("learner", "learner"): 0.0, ("replay", "replay-0"): 0.0, ("actor", "actor-0"): 0.0}
    )
    refusing: str = ""

    def messages(self, turn: int) -> Iterator[list[Buffer]]:
        for incarnation, ((role, name), behind_s) in enumerate(self.behind_s.items()):
            yield encode(
                Kind.RELAYED_STATUS,
                Status(
                    role=role,
                    name=name,
                    host="box",
                    pid=1,
                    incarnation=incarnation,
                    start_time=0.0,
                    time=time.time() - behind_s,
                    progress_time=0.0,
                    metrics={"refused_messages": float(turn if name == self.refusing else 7)},
                ),
            )

    def serve(self, address: str, stop: threading.Event) -> None:
        with closing(publisher_of(address)) as publisher:
            if self.publishes:
                publisher.publish(Parameters("run", 1, 1, 1, NETWORK, self.experience, make_tensors(ARRAYS)))
            turn = 0
            while not stop.wait(SERVE_S):
                publisher.serve()
                turn += 1
                for (part,) in self.messages(turn) if self.publishes else ():
                    header = bytes(part)
                    version = header[1] if self.version is None else self.version
                    publisher.send([header[:1] + bytes([version]) + header[2:]])


@contextmanager
def up(learner: Learner, address: str) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=learner.serve, args=(address, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """Runs a learner and returns the checks by name."""
    monkeypatch.setattr(peers, "SILENT_S", 1.0)

    def ask(learner: Learner, network: str | None = NETWORK, shards: int = 1) -> dict[str, Check]:
        address = free_tcp_address()
        config = loading.replace(
            Config(),
            {
                "replay.shards": shards,
                "addresses.experience": ["ipc:///tmp/experience"] * shards,
                "addresses.priorities": ["ipc:///tmp/priorities"] * shards,
                "addresses.parameters": address,
                "telemetry.status_interval_s": 0.04,
            },
        )
        with up(learner, address):
            return {check.name: check for check in check_run(config, network)}

    return ask


Ask = Callable[..., dict[str, Check]]


def test_a_run_that_matches_this_host_passes(ask: Ask) -> None:
    found = ask(Learner())
    assert {name: check.level for name, check in found.items()} == dict.fromkeys(
        ("protocol", "signatures", "clock", "peers"), "ok"
    ), found
    assert found["protocol"].found.endswith("like the learner of run run")
    assert found["signatures"].found == f"experience {EXPERIENCE}, network {NETWORK}, like the learner's"
    assert found["clock"].found.startswith("learner on box is 0.")
    assert found["peers"].found == "1 actor, 1 learner, 1 replay"


def test_different_signatures_fail(ask: Ask) -> None:
    found = ask(Learner(experience="another"))["signatures"]
    assert found.level == "fail"
    assert found.found == f"the learner of run run has experience another, ours is {EXPERIENCE}"
    assert "learner's config" in found.remedy
    found = ask(Learner(), network="mine")["signatures"]
    assert (found.level, f"network {NETWORK}, ours is mine" in found.found) == ("fail", True)
    assert ask(Learner(), network=None)["signatures"].level == "ok"  # a replay has no network


def test_another_protocol_version_fails(ask: Ask) -> None:
    found = ask(Learner(version=9))
    assert found["protocol"].level == "fail"
    assert f"protocol version 9.{PROTOCOL_VERSION[1]}, this program has" in found["protocol"].found
    assert "same version of apex_zmq" in found["protocol"].remedy


@pytest.mark.parametrize(
    ("learner_s", "actor_s", "level", "text"),
    [
        (5.0, 0.0, "warn", "learner on box is 5."),
        (-60.0, 0.0, "fail", "s ahead"),
        (60.0, 0.0, "fail", "s behind"),
        (0.0, -20.0, "fail", ", actor-0 on box is "),
    ],
)
def test_clock_offsets_are_reported(ask: Ask, learner_s: float, actor_s: float, level: str, text: str) -> None:
    roles: dict[tuple[Role, str], float] = {
        ("learner", "learner"): learner_s,
        ("replay", "replay-0"): 0.0,
        ("actor", "actor-0"): actor_s,
    }
    found = ask(Learner(behind_s=roles))["clock"]
    assert found.level == level
    assert text in found.found
    assert "NTP" in found.remedy


def test_the_clock_is_not_compared_without_a_status_of_the_learner(ask: Ask) -> None:
    found = ask(Learner(behind_s={("replay", "replay-0"): 0.0}))["clock"]
    assert (found.level, "telemetry.status_interval_s" in found.remedy) == ("warn", True)


def test_missing_roles_and_refusals_are_reported(ask: Ask) -> None:
    found = ask(Learner(behind_s={("learner", "learner"): 0.0, ("replay", "replay-0"): 0.0}), shards=2)["peers"]
    assert (found.level, found.found) == ("warn", "1 learner, 1 replay; too few: replay, actor")
    found = ask(Learner(refusing="replay-0"))["peers"]
    assert (found.level, "replay-0 on box refuses messages" in found.found) == ("warn", True)
    assert found.remedy


def test_a_silent_or_absent_learner_is_a_warning(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SILENT_S", 0.1)
    found = ask(Learner(publishes=False))
    assert {name: check.level for name, check in found.items()} == {"protocol": "warn"}
    (absent,) = check_run(loading.replace(Config(), {"addresses.parameters": free_tcp_address()}), None)
    assert (absent.name, absent.level) == ("signatures", "warn")
    assert EXPERIENCE in absent.found
