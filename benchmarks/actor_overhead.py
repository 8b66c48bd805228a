"""Measure decisions per second of a real actor without its network; peer: a bare loop over the same lanes.

The actor explores at random with constant Q-values: it builds n-step transitions, compresses every frame and sends
segments over loopback TCP to a real replay process. The bare loop steps the same lanes (World 1-1 on FCEUmm, 84x84)
with random actions and discards the observations. Both run in this process, in turn.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_zmq.agent.networks import make_network, to_arrays
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import make_lanes
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Links
from apex_zmq.roles.actor.loop import Actor
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.wire.messages import Parameters, make_tensors
from benchmarks import synthetic
from benchmarks.rows import Row, main, versus

ROUNDS = 5
SECONDS = 10.0
RANDOM = {"actor.epsilon": 1.0, "actor.epsilon_alpha": 0.0}


def measure() -> list[Row]:
    ours: list[float] = []
    bare: list[float] = []
    with synthetic.replay(RANDOM) as running:
        for _ in range(ROUNDS):
            bare.append(bare_decisions_per_s(running.config))
            ours.append(actor_decisions_per_s(running.config))
    what = "decisions/s of an actor without its network; peer: its environment alone"
    return [versus("actor_overhead", what, ours, bare, 0.9, "decisions/s")]


class ConstantActor(Actor):
    """An actor whose Q-values are 0 and take no time to compute."""

    decisions_per_s = 0.0

    def _q_values(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.zeros((len(observations), self._lanes.spec.num_actions), np.float32)

    def measure(self, stop: threading.Event) -> None:
        """Measure for SECONDS from the first decision on, then stop the actor."""
        while self._decisions == 0:
            time.sleep(0.01)
        begin, first = time.monotonic(), self._decisions
        time.sleep(SECONDS)
        self.decisions_per_s = (self._decisions - first) / (time.monotonic() - begin)
        stop.set()


def actor_decisions_per_s(config: Config) -> float:
    actor, stop = ConstantActor(config, "constant"), threading.Event()
    arrays = to_arrays(make_network(config.agent, actor._lanes.spec.frame, actor._lanes.spec.num_actions))
    publisher = ParameterPublisher(Links(config))
    publisher.publish(
        Parameters(
            run="bench",
            learner_incarnation=1,
            version=1,
            update=0,
            network_signature=network_signature(arrays),
            experience_signature=experience_signature(config),
            tensors=make_tensors(arrays),
        )
    )
    playing = threading.Thread(target=actor.run, args=(stop,))
    playing.start()
    measuring = threading.Thread(target=actor.measure, args=(stop,))
    measuring.start()
    while playing.is_alive():
        publisher.serve()
        playing.join(0.05)
    measuring.join()
    publisher.close()
    return actor.decisions_per_s


def bare_decisions_per_s(config: Config) -> float:
    lanes = make_lanes(config.env, config.actor.lanes, seed=0)
    rng = np.random.default_rng(0)
    for lane in range(lanes.num_lanes):
        lanes.reset(lane)
    decisions, begin = 0, time.monotonic()
    while time.monotonic() < begin + SECONDS:
        for lane, action in enumerate(rng.integers(lanes.spec.num_actions, size=lanes.num_lanes).tolist()):
            step = lanes.step(lane, action)
            if step.terminated or step.truncated:
                lanes.reset(lane)
        decisions += lanes.num_lanes
    rate = decisions / (time.monotonic() - begin)
    lanes.close()
    return rate


if __name__ == "__main__":
    main(measure)
