"""The actor role: steps its lanes with its own copy of the network and sends segments to the replay."""

from __future__ import annotations

import faulthandler
import logging
import secrets
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from apex_zmq.agent.exploration import Explorer, elastic_epsilon, ladder
from apex_zmq.agent.networks import load_arrays, make_network, to_arrays
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import EnvError, Lanes, Step, make_lanes
from apex_zmq.envs.restarts import Kind, Starts
from apex_zmq.net.parameters import ParameterFollower
from apex_zmq.net.sockets import Links
from apex_zmq.play.viewer import LaneWindow
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.roles.actor.shipper import Shipper
from apex_zmq.roles.status import StatusReporter
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import Segment
from apex_zmq.wire.messages import MAX_STAGES, Episode, StageArchive

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
IDLE_S = 0.1
REARM_S = 1.0


class Watchdog:
    """Ends the process with a stack trace if the emulator hangs, even while it holds the GIL.

    Armed during emulator work, disarmed while waiting on a socket.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._armed_at: float | None = None

    def arm(self) -> None:
        """Restart the countdown; cheap enough to call before every decision."""
        now = time.monotonic()
        if self._armed_at is None or now - self._armed_at > min(REARM_S, self._timeout_s / 4):
            faulthandler.dump_traceback_later(self._timeout_s, exit=True)
            self._armed_at = now

    def disarm(self) -> None:
        """Stop the countdown."""
        faulthandler.cancel_dump_traceback_later()
        self._armed_at = None


class Actor:
    """One actor process over `actor.lanes` lanes.

    index: index of this actor; total_lanes: lanes of all actors; both None: elastic exploration.
    render: show the last lane, which has the lowest epsilons, in a window.

    Raises:
        EnvError: the environment cannot be created.
        WindowError: the window cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        index: int | None = None,
        total_lanes: int | None = None,
        *,
        render: bool = False,
    ) -> None:
        torch.set_num_threads(config.actor.threads)
        count = config.actor.lanes
        incarnation = secrets.randbits(63)
        self._watchdog = Watchdog(config.actor.watchdog_s)
        # The seed of an elastic actor is random; otherwise all elastic actors would play the same games.
        entropy = [config.run.seed, index] if index is not None else [config.run.seed, incarnation]
        self._rng = np.random.default_rng(entropy)
        self._config = config
        self._name, self._incarnation = name, incarnation
        self._watchdog.arm()
        try:
            self._lanes: Lanes = make_lanes(config.env, count, int(self._rng.integers(1 << 31)), render=render)
        finally:
            self._watchdog.disarm()
        self._starts = Starts(self._lanes, config.actor.restarts, self._rng)
        self._kinds = [Kind.REAL] * count
        self._window = LaneWindow(self._lanes, count - 1) if render else None
        spec = self._lanes.spec
        self._network = make_network(config.agent, spec.frame, spec.num_actions).eval()
        self._signature = experience_signature(config)
        links = Links(config)
        self._parameters = ParameterFollower(links, network_signature(to_arrays(self._network)), self._signature)
        self._shipper = Shipper(
            links,
            len(config.addresses.experience),
            self._signature,
            name,
            incarnation,
            drop_oldest=config.actor.when_blocked == "drop_oldest",
        )
        self._explorer = Explorer(count, spec.num_actions, config.actor.repeat_zeta, config.actor.repeat_max, self._rng)
        self._ladder: list[float] | None = None
        if index is not None and total_lanes is not None:
            rungs = range(index * count, (index + 1) * count)
            self._ladder = [
                ladder(config.actor.epsilon, config.actor.epsilon_alpha, rung, total_lanes) for rung in rungs
            ]
        self._builders = [
            SegmentBuilder(
                spec.frame,
                config.agent.n_step,
                config.agent.gamma,
                config.actor.segment_length,
                cut_returns=config.agent.cut_returns,
            )
            for _ in range(count)
        ]
        self._observations = np.zeros((count, spec.frame.stack, *spec.frame.shape), spec.frame.dtype)
        self._epsilon = np.zeros(count)
        self._returns = np.zeros(count)
        self._lengths = np.zeros(count, np.int64)
        self._decisions = 0
        self._archive_due = 0.0  # monotonic seconds
        self._reporter = StatusReporter("actor", name, incarnation, config, links)

    def run(self, stop: threading.Event) -> None:
        """Play until `stop` is set.

        Raises:
            MismatchError: the learner has another signature or version of the protocol.
            RuntimeError, or an exception of the environment: it failed, and may work again in a new process.
        """
        self._reporter.start()
        try:
            if self._await_parameters(stop):
                self._play(stop)
        except EnvError as error:
            raise RuntimeError(f"the environment failed: {error}") from error
        finally:
            self._watchdog.disarm()
            self._shipper.send_bye()
            self._report()
            self._reporter.close()
            self._shipper.close()
            self._parameters.close()
            self._lanes.close()
            if self._window is not None:
                self._window.close()

    def _await_parameters(self, stop: threading.Event) -> bool:
        log.info("waiting for parameters from %s", self._config.addresses.parameters)
        while not stop.is_set():
            if self._follow(IDLE_S):
                return True
        return False

    def _follow(self, timeout_s: float = 0.0) -> bool:
        arrays = self._parameters.poll(timeout_s)
        if arrays is None:
            return False
        load_arrays(self._network, arrays)
        return True

    def _play(self, stop: threading.Event) -> None:
        lanes = range(self._lanes.num_lanes)
        log.info("playing %d lanes%s", len(lanes), ", the last one in a window" if self._window is not None else "")
        self._watchdog.arm()
        for lane in lanes:
            self._reset(lane)
        q = self._q_values(self._observations)
        while not stop.is_set():
            self._watchdog.arm()
            chosen = self._explorer.act(q.argmax(axis=1), self._epsilon)
            steps = [self._step(lane, self._starts.choose(lane, int(chosen[lane])), q[lane]) for lane in lanes]
            ended = np.array([step.terminated or step.truncated for step in steps])
            final_value = self._final_values(steps)
            for lane in lanes:
                if ended[lane]:
                    self._finish_episode(lane, steps[lane])
                    self._reset(lane)
            self._follow()
            q = self._q_values(self._observations)
            next_value = np.where(ended, final_value, q.max(axis=1))
            for lane in lanes:
                self._builders[lane].bootstrap(float(next_value[lane]))
                while (segment := self._builders[lane].take()) is not None:
                    self._ship(segment, stop)
            self._decisions += len(lanes)
            self._reporter.progress()
            self._report()
        for builder in self._builders:
            if (segment := builder.take(flush=True)) is not None:
                self._shipper.ship(segment)

    def _ship(self, segment: Segment, stop: threading.Event) -> None:
        self._watchdog.disarm()
        self._shipper.ship(segment)
        started, warned = time.monotonic(), False
        while self._shipper.blocked and not stop.is_set():
            self._shipper.wait(IDLE_S)
            self._report()
            if not warned and time.monotonic() - started > PATIENCE_S:
                log.warning("no shard has taken a segment for %g s; check that replay and learner run", PATIENCE_S)
                warned = True

    def _q_values(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            q: npt.NDArray[np.float32] = self._network(torch.from_numpy(observations)).numpy()
        return q

    def _step(self, lane: int, action: int, q: npt.NDArray[np.float32]) -> Step:
        step = self._lanes.step(lane, action)
        stack = self._observations[lane]
        stack[:-1] = stack[1:]
        stack[-1] = step.frame
        if self._starts.follow(lane, step, stack) and not step.terminated:
            step = step._replace(truncated=True)
        self._builders[lane].step(action, float(q[action]), step.frame, step.reward, step.terminated, step.truncated)
        self._returns[lane] += step.reward
        self._lengths[lane] += 1
        if self._window is not None and self._window.lane == lane:
            epsilon, episode_return = float(self._epsilon[lane]), float(self._returns[lane])
            self._window.show(stack, q, action, episode_return, epsilon, step.stage, step.info)
        return step

    def _final_values(self, steps: list[Step]) -> npt.NDArray[np.float64]:
        """[L] max_a Q of the final observation for lanes whose episode was truncated; 0 for other lanes.

        Must be called before the lanes are reset, which overwrites the final observation.
        """
        values = np.zeros(len(steps))
        truncated = [lane for lane, step in enumerate(steps) if step.truncated and not step.terminated]
        if truncated:
            values[truncated] = self._q_values(self._observations[truncated]).max(axis=1)
        return values

    def _reset(self, lane: int) -> None:
        if self._ladder is not None:
            epsilon = self._ladder[lane]
        else:
            actor = self._config.actor
            epsilon = elastic_epsilon(actor.epsilon, actor.epsilon_alpha, lane, actor.lanes, self._rng)
        start = self._starts.begin(lane, epsilon)
        self._kinds[lane] = start.kind
        self._epsilon[lane] = 1.0 if start.kind is Kind.EXPLORER else epsilon
        self._observations[lane] = start.observation
        self._builders[lane].reset(start.observation)
        self._explorer.reset(lane)
        self._returns[lane], self._lengths[lane] = 0.0, 0
        if self._window is not None and self._window.lane == lane:
            self._window.reset()

    def _finish_episode(self, lane: int, step: Step) -> None:
        if self._kinds[lane] is not Kind.REAL:  # no episode of the environment's own
            return
        self._reporter.episode(
            Episode(
                episode_return=float(self._returns[lane]),
                length=int(self._lengths[lane]),
                epsilon=float(self._epsilon[lane]),
                stage=step.stage,
                info=dict(step.info),
            )
        )

    def _report(self) -> None:
        newest = self._parameters.newest
        if newest is None:
            return
        self._reporter.metrics = {
            "decisions": self._decisions,
            "segments": self._shipper.sent,
            "queued_segments": self._shipper.queued,
            "dropped_segments": self._shipper.dropped,
            "blocked_s": self._shipper.waited_s,
            "parameter_version": newest.version,
            "parameter_update": newest.update,
            "parameter_age_s": time.monotonic() - self._parameters.received_at,
            **self._starts.counts,
            "archive_cells": self._starts.archive.num_cells,
            "archive_bytes": self._starts.archive.size,
        }
        self._report_archive()

    def _report_archive(self) -> None:
        """Count the archive for the next status, at the interval at which the learner writes it."""
        if time.monotonic() < self._archive_due:
            return
        self._archive_due = time.monotonic() + self._config.telemetry.log_interval_s
        stages = list(self._starts.histograms().items())[:MAX_STAGES]
        self._reporter.archive = tuple(StageArchive(stage, *counts) for stage, counts in stages)
