"""A real bin/apex-forwarder between a publisher and followers of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from apex_zmq.config.settings import Config
from apex_zmq.net.parameters import ParameterFollower, ParameterPublisher
from apex_zmq.net.sockets import Inbox, wait
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.watch.metrics import unknown
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Heartbeat, Parameters, Status, decode_heartbeat, decode_status, make_tensors

from ..channels import links_of, publisher_of
from ..conftest import Program, StartProgram, free_tcp_address

ARRAYS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
NETWORK, EXPERIENCE = network_signature(ARRAYS), experience_signature(Config())


def parameters(version: int, experience: str = EXPERIENCE) -> Parameters:
    return Parameters(
        run="run",
        learner_incarnation=7,
        version=version,
        update=10 * version,
        network_signature=NETWORK,
        experience_signature=experience,
        tensors=make_tensors({"weight": ARRAYS["weight"] + version}),
    )


class Chain:
    """learner (here) -> forwarder (a process) -> actors (here)."""

    def __init__(self, start: StartProgram, opened: Callable[[Any], Any]) -> None:
        self.upstream, self.downstream, status = (free_tcp_address() for _ in range(3))
        self.learner: ParameterPublisher = opened(publisher_of(self.upstream))
        self.statuses: Inbox[Status] = opened(links_of(status=status).bind("status", {Kind.STATUS: decode_status}))
        self.forwarder: Program = start(
            "forwarder", "--parameters", self.upstream, "--bind", self.downstream, "--status", status,
            "--set", "telemetry.status_interval_s=0.1",
        )  # fmt: skip

    def hear(self, follower: ParameterFollower, version: int, served: tuple[ParameterPublisher, ...]) -> None:
        """Wait until the follower has this version; it must carry that version's weights."""
        while True:
            for publisher in served:
                publisher.serve()
            arrays = follower.poll(0.05)
            if follower.newest is not None and follower.newest.version == version:
                break
            assert self.forwarder.process.poll() is None, self.forwarder.output
        assert arrays is not None
        np.testing.assert_array_equal(arrays["weight"], ARRAYS["weight"] + version)


def test_forwarder_serves_late_actors_after_the_learner_ended(
    start: StartProgram, opened: Callable[[Any], Any]
) -> None:
    chain = Chain(start, opened)
    early = opened(ParameterFollower(links_of(parameters=chain.downstream), NETWORK, EXPERIENCE))
    for version in (1, 2):
        chain.learner.publish(parameters(version))
        chain.hear(early, version, served=(chain.learner,))
    chain.learner.close()
    late = opened(ParameterFollower(links_of(parameters=chain.downstream), NETWORK, EXPERIENCE))
    chain.hear(late, 2, served=())
    heartbeats: Inbox[Heartbeat] = opened(
        links_of(parameters=chain.downstream).subscribe("parameters", {Kind.HEARTBEAT: decode_heartbeat})
    )
    assert heartbeats.receive(timeout_s=60) == Heartbeat(run="run", learner_incarnation=7, version=2, update=20)
    while (status := chain.statuses.receive(timeout_s=60)) is not None:
        if status.metrics.get("forwarded") == 2:
            break
    assert status is not None
    assert status.role == "forwarder"
    assert not unknown("forwarder", status.metrics)
    chain.forwarder.interrupt()
    assert chain.forwarder.wait() == 0


def test_forwarder_ends_on_another_experience_signature(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    chain = Chain(start, opened)
    chain.learner.publish(parameters(1, experience="another"))
    while chain.forwarder.process.poll() is None:
        chain.learner.serve()
        wait([chain.statuses], [], 0.05)
        chain.statuses.receive()
    assert chain.forwarder.wait() == 2
    assert "experience signature another" in chain.forwarder.output
