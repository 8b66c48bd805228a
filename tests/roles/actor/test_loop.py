"""An actor between a replay and a learner that the test plays: its settings do what they say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_zmq.agent.exploration import ladder
from apex_zmq.agent.networks import make_network, to_arrays
from apex_zmq.config import loading
from apex_zmq.config.settings import Agent, Config
from apex_zmq.envs.lanes import GymLanes
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles.actor import loop, shipper
from apex_zmq.roles.actor.loop import Actor
from apex_zmq.roles.actor.shipper import QUEUED_SEGMENTS
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import FrameSpec, Shipment
from apex_zmq.watch.metrics import unknown
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import decode_segment
from apex_zmq.wire.messages import Bye, Episode, Parameters, Status, decode_bye, decode_status, make_tensors

from ...conftest import StartProgram

LENGTH = 20  # decisions of an episode
PATIENCE_S = 30.0
ACTIONS = 50
WALK = f"""
import threading

import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete({ACTIONS})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {{}}

    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), 1.0, self.time == {LENGTH}, False, {{}}


class Hanging(Walk):
    def step(self, action):
        threading.Event().wait()


def hanging():
    threading.Event().wait()


class Crashing(Walk):
    def step(self, action):
        raise OSError("the emulator is gone")
"""


class Peers:
    """What an actor meets: parameters for it, and what it sends."""

    def __init__(self, directory: Path, changes: dict[str, Any]) -> None:
        addresses = {name: f"ipc://{directory}/{name}" for name in ("experience", "parameters", "status")}
        self.config: Config = loading.replace(
            Config(),
            {
                "env.id": "walk:Walk",
                "env.frame_stack": 1,
                "agent.network": "mlp",
                "actor.lanes": 1,
                "addresses.experience": [addresses["experience"]],
                "addresses.parameters": addresses["parameters"],
                "addresses.status": addresses["status"],
                "telemetry.status_interval_s": 0.02,
            }
            | changes,
        )
        signature, n_step = experience_signature(self.config), self.config.agent.n_step
        links = Links(self.config)
        self._experience: Inbox[Shipment | Bye] = links.bind(
            "experience",
            {Kind.SEGMENT: lambda parts: decode_segment(parts, signature, n_step), Kind.BYE: decode_bye},
        )
        self._statuses: Inbox[Status] = links.bind("status", {Kind.STATUS: decode_status})
        self._publisher = ParameterPublisher(links)
        arrays = to_arrays(make_network(Agent("mlp"), FrameSpec((2,), "float32", 1), ACTIONS, seed=0))
        parameters = Parameters(
            run="run",
            learner_incarnation=1,
            version=1,
            update=0,
            network_signature=network_signature(arrays),
            experience_signature=signature,
            tensors=make_tensors(arrays),
        )
        self._publisher.publish(parameters)
        self.shipments: list[Shipment] = []
        self.statuses: list[Status] = []
        self.bye: Bye | None = None

    @property
    def episodes(self) -> list[Episode]:
        return [episode for status in self.statuses for episode in status.episodes]

    def serve(self) -> None:
        """Hear the actor for a moment."""
        wait([self._experience, self._statuses], [], 0.05)
        self._publisher.serve()
        self._hear_shipped(0.0)
        if (status := self._statuses.receive()) is not None:
            self.statuses.append(status)

    def watch(self, index: int | None = None, total_lanes: int | None = None, segments: int = 12) -> None:
        """Have an actor play until it has sent so much and told of three episodes for each of its lanes."""
        actor, stop = Actor(self.config, "actor", index, total_lanes), threading.Event()
        thread = threading.Thread(target=actor.run, args=(stop,))
        thread.start()
        try:
            while len(self.shipments) < segments or len(self.episodes) < 3 * self.config.actor.lanes:
                self.serve()
        finally:
            stop.set()
            self.see_off(thread)

    def _hear_shipped(self, timeout_s: float) -> bool:
        message = self._experience.receive(timeout_s)
        if isinstance(message, Shipment):
            self.shipments.append(message)
        elif message is not None:
            self.bye = message
        return message is not None

    def see_off(self, thread: threading.Thread) -> None:
        """Hear an actor that ends."""
        while thread.is_alive():
            self.serve()

    def await_bye(self) -> Bye:
        """The last word of an actor that has ended, and all segments before it."""
        while self.bye is None:
            assert self._hear_shipped(PATIENCE_S)
        return self.bye

    def await_status(self, met: Callable[[dict[str, float]], bool]) -> None:
        """Hear statuses, and no segments, until one fits."""
        while not (
            self.statuses and self.statuses[-1].metrics.keys() > {"blocked_s"} and met(self.statuses[-1].metrics)
        ):
            wait([self._statuses], [], 0.05)
            self._publisher.serve()
            if (status := self._statuses.receive()) is not None:
                assert not unknown("actor", status.metrics)
                self.statuses.append(status)

    def close(self) -> None:
        self._experience.close()
        self._statuses.close()
        self._publisher.close()


MakePeers = Callable[..., Peers]


@pytest.fixture(autouse=True)
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the module importable, here and for programs."""
    (tmp_path / "walk.py").write_text(WALK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_segments_follow_the_settings(make: MakePeers) -> None:
    peers = make(agent__n_step=4, agent__gamma=0.5, actor__segment_length=7, actor__threads=2)
    peers.watch()
    assert torch.get_num_threads() == 2
    assert {each.segment.num_transitions for each in peers.shipments[:-1]} == {7}  # the last is what there was
    steps = np.concatenate([each.segment.transitions["steps"] for each in peers.shipments])
    discount = np.concatenate([each.segment.transitions["discount"] for each in peers.shipments])
    reward = np.concatenate([each.segment.transitions["reward"] for each in peers.shipments])
    assert set(steps) == {1, 2, 3, 4}
    assert set(discount) == {0.0, 0.5**4}  # an episode's last four transitions do not bootstrap
    np.testing.assert_allclose(reward, 2 - 2 * 0.5**steps)


def test_lanes_use_the_epsilons_of_their_ladder_rungs(make: MakePeers) -> None:
    peers = make(actor__lanes=3, actor__epsilon=0.3, actor__epsilon_alpha=2.0)
    peers.watch(index=1, total_lanes=9)
    assert {episode.epsilon for episode in peers.episodes} == {ladder(0.3, 2.0, rung, 9) for rung in (3, 4, 5)}
    assert all(status.metrics["decisions"] % 3 == 0 for status in peers.statuses if "decisions" in status.metrics)


def test_epsilons_are_drawn_from_the_ladder_without_an_index(make: MakePeers) -> None:
    peers = make(actor__lanes=2, actor__epsilon=0.3, actor__epsilon_alpha=2.0)
    peers.watch()
    epsilons = {episode.epsilon for episode in peers.episodes}
    assert len(epsilons) == len(peers.episodes)
    exponents = np.log(sorted(epsilons)) / np.log(0.3)
    assert ((exponents >= 1) & (exponents <= 3)).all()
    assert sum(exponents >= 2) == sum(exponents <= 2)  # each lane in its own half


def test_random_actions_are_repeated_as_configured(make: MakePeers) -> None:
    # An exponent so near 1 that nearly every draw exceeds the most that is allowed.
    peers = make(actor__epsilon=1.0, actor__epsilon_alpha=0.0, actor__repeat_zeta=1.01, actor__repeat_max=5)
    peers.watch()
    actions = np.concatenate([each.segment.transitions["action"] for each in peers.shipments])
    changes = np.flatnonzero(np.diff(actions))
    assert np.median(np.diff(changes)) == 5


def test_statuses_are_sent_at_the_configured_interval(make: MakePeers) -> None:
    peers = make()
    peers.watch(segments=40)
    assert min(np.diff([status.time for status in peers.statuses])) < 0.5  # told 0.02; a second by default


def configured(peers: Peers, directory: Path) -> tuple[str, str]:
    """The option that makes an actor program play with these peers."""
    (directory / "actor.yaml").write_text(loading.to_yaml(peers.config))
    return "--config", str(directory / "actor.yaml")


def test_program_uses_actor_index_and_num_lanes(make: MakePeers, start: StartProgram, tmp_path: Path) -> None:
    peers = make(actor__lanes=2)
    program = start("actor", *configured(peers, tmp_path), "--actor-index", "1", "--num-lanes", "6")
    while len(peers.episodes) < 6:
        peers.serve()
        assert program.process.poll() is None, program.output
    assert {status.name for status in peers.statuses} == {"actor-1"}
    assert {episode.epsilon for episode in peers.episodes} == {ladder(0.4, 7.0, rung, 6) for rung in (2, 3)}


@pytest.mark.parametrize("what", ["Hanging", "hanging"])  # in a step, and while it is made
def test_a_hanging_environment_ends_the_program(
    what: str, make: MakePeers, start: StartProgram, tmp_path: Path
) -> None:
    peers = make(env__id=f"walk:{what}", actor__watchdog_s=2.0)  # less, and a busy machine hangs elsewhere
    program = start("actor", *configured(peers, tmp_path))
    while program.process.poll() is None:
        peers.serve()
    assert program.wait() == 1
    assert "Timeout (0:00:02" in program.output
    assert 'walk.py", line ' in program.output  # where it hangs


def test_raising_environment_ends_the_program_with_exit_code_1(
    make: MakePeers, start: StartProgram, tmp_path: Path
) -> None:
    peers = make(env__id="walk:Crashing")
    program = start("actor", *configured(peers, tmp_path))
    while program.process.poll() is None:
        peers.serve()
    assert program.wait() == 1
    assert "the emulator is gone" in program.output


def test_bye_reports_the_number_of_segments_sent(make: MakePeers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper, "BYE_TIMEOUT_S", PATIENCE_S)
    peers = make()
    peers.watch(segments=5)
    bye = peers.await_bye()
    assert [each.sequence for each in peers.shipments] == list(range(bye.count))
    assert {(each.actor, each.incarnation) for each in peers.shipments} == {(bye.actor, bye.incarnation)}


class SavedWalks(GymLanes):
    """Walks that can be saved, one cell per decision."""

    stride = 1.0

    def next_stage(self, lane: int) -> str:
        return "meadow"

    def save(self, lane: int) -> tuple[Any, int]:
        return self._decisions[lane], 8

    def restore(self, lane: int, state: Any) -> None:
        self._decisions[lane] = self._walk(lane).time = state

    def cell(self, lane: int) -> int:
        return self._decisions[lane]

    def progress(self, lane: int) -> float:
        return float(self._decisions[lane])

    def _walk(self, lane: int) -> Any:
        return self._lanes[lane].unwrapped


def test_statuses_have_histograms_of_restarts(make: MakePeers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "make_lanes", SavedWalks)
    settings = {"actor__restarts__share": 0.9, "telemetry__log_interval_s": 0.05}
    peers = make(actor__lanes=2, actor__epsilon_alpha=100.0, **settings)
    actor, stop = Actor(peers.config, "actor", 0, 2), threading.Event()  # epsilons 0.4 and 0
    thread = threading.Thread(target=actor.run, args=(stop,))
    thread.start()
    try:
        while not any(any(each.ends) for status in peers.statuses for each in status.archive):
            peers.serve()
    finally:
        stop.set()
        peers.see_off(thread)
    archives = [status.archive for status in peers.statuses if status.archive]
    for (each,) in archives:
        assert (each.stage, each.width) == ("meadow", 1.0)
        assert set(np.flatnonzero(each.ends)) <= {LENGTH}
        assert set(each.frontier) <= {0, 1}


def test_statuses_without_restarts_have_no_histograms(make: MakePeers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "make_lanes", SavedWalks)
    peers = make(telemetry__log_interval_s=0.001)
    peers.watch()
    assert all(status.archive == () for status in peers.statuses)


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_actor_follows_when_blocked_while_no_shard_receives(policy: str, make: MakePeers) -> None:
    peers = make(actor__when_blocked=policy, actor__segment_length=4)
    actor, stop = Actor(peers.config, "actor"), threading.Event()
    thread = threading.Thread(target=actor.run, args=(stop,))
    thread.start()
    try:
        peers.await_status(lambda metrics: metrics["blocked_s"] > 0.2 or metrics["dropped_segments"] > 20)
        blocked = peers.statuses[-1].metrics
        while len(peers.shipments) < 2 * QUEUED_SEGMENTS:
            peers.serve()
    finally:
        stop.set()
        peers.see_off(thread)
    # Numbers are given on sending: what was dropped leaves no gap. The last of them may not have come: libzmq gives up
    # what a full receiver has not read when the sender hangs up.
    assert [each.sequence for each in peers.shipments] == list(range(len(peers.shipments)))
    if policy == "block":
        assert blocked["dropped_segments"] == peers.statuses[-1].metrics["dropped_segments"] == 0
        assert blocked["decisions"] <= 4 * (blocked["segments"] + 3)  # it has not played on
    else:
        assert peers.statuses[-1].metrics["blocked_s"] == 0
        assert blocked["decisions"] >= 4 * (blocked["segments"] + QUEUED_SEGMENTS + blocked["dropped_segments"])
        assert QUEUED_SEGMENTS == 64  # as the setting's description says
