"""The journal's thread, checkpoints and budgets: what is written of a run."""

from __future__ import annotations

import csv
import dataclasses
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apex_zmq.agent.trainer import Trainer
from apex_zmq.config import loading
from apex_zmq.config.settings import Config, Run
from apex_zmq.envs.make import env_spec
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles.learner import journal
from apex_zmq.roles.learner.journal import Journal, Origin, Saver, StepReport, Totals, spent_budget
from apex_zmq.roles.learner.publisher import Publisher
from apex_zmq.rundir.checkpoint import load
from apex_zmq.rundir.directory import SETTINGS
from apex_zmq.rundir.episodes import EPISODES
from apex_zmq.watch.stats import TOTALS
from apex_zmq.watch.tensorboard import Board
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import (
    Episode,
    Parameters,
    StageArchive,
    Status,
    decode_parameters,
    decode_relayed_status,
    make_tensors,
)

from ...checkpoints import CARTPOLE

PATIENCE_S = 30.0
BEGIN = StepReport(update=0, progress_time=0.0, rank_waited_s=np.zeros(1))


def status(decisions: int, episodes: int = 0, epsilon: float = 0.5) -> Status:
    now = time.time()
    finished = tuple(Episode(float(number), 10, epsilon) for number in range(episodes))
    return Status("actor", "actor", "host", 1, 1, now, now, now, {"decisions": decisions}, finished)


class Kept:
    """A journal behind its publisher, as on rank 0."""

    def __init__(
        self,
        directory: Path,
        origin: Origin | None = None,
        begin: StepReport = BEGIN,
        log_interval_s: float = 0.05,
    ) -> None:
        self.directory = directory
        settings: dict[str, Any] = {
            f"addresses.{name}": f"ipc://{directory}/{name}" for name in ("parameters", "status")
        }
        settings |= {"telemetry.log_interval_s": log_interval_s, "telemetry.status_interval_s": 0.05}
        self.config: Config = loading.replace(CARTPOLE, settings)
        links = Links(self.config)
        self.publisher = Publisher(links)
        self.journal = Journal(self.config, directory, origin or Origin.of(None), begin, self.publisher)
        self.subscribed: Inbox[Any] = links.subscribe(
            "parameters",
            {
                Kind.RELAYED_STATUS: decode_relayed_status,
                Kind.PARAMETERS: lambda parts: decode_parameters(parts)[0],
            },
        )
        self._actor = links.connect("status")
        self.publisher.start()
        self.journal.start()

    def send(self, status: Status) -> None:
        wait([], [self._actor], PATIENCE_S)
        assert self._actor.send(encode(Kind.STATUS, status))

    def next(self, kind: type, role: str | None = None) -> Any:
        """The next message of a kind, and of a role's."""
        while (message := self.subscribed.receive(PATIENCE_S)) is not None:
            if isinstance(message, kind) and (role is None or getattr(message, "role", None) == role):
                return message
        raise AssertionError(f"no {kind.__name__}")

    def own(self, **metrics: float) -> Status:
        """The learner's own next status with these metrics."""
        while True:
            own: Status = self.next(Status, "learner")
            if metrics.items() <= own.metrics.items():
                return own

    def points(self, tag: str) -> list[tuple[int, float]]:
        """TensorBoard's curve so far: decisions and values."""
        accumulator = EventAccumulator(str(self.directory))
        accumulator.Reload()
        return [(event.step, event.value) for event in accumulator.Scalars(tag)]

    def close(self) -> None:
        self.journal.close()
        self.publisher.close()
        self._actor.close()
        self.subscribed.close()


@pytest.fixture
def kept(directory: Path) -> Iterator[Kept]:
    kept = Kept(directory)
    yield kept
    kept.close()


def test_statuses_update_totals_episode_log_and_own_status(kept: Kept) -> None:
    kept.send(status(decisions=20, episodes=2, epsilon=0.25))
    own = kept.own(decisions=20)
    assert (own.metrics["live_actor"], own.metrics["rollout/episodes"]) == (1, 2)
    assert kept.journal.totals == Totals(episodes=2, decisions=20)
    with (kept.directory / EPISODES).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["decisions"], row["epsilon"], row["return"]) for row in rows] == [
        ("20", "0.25", "0"),
        ("20", "0.25", "1"),
    ]
    assert loading.load(kept.directory / SETTINGS, []) == kept.config


def test_histograms_of_restarts_are_written_and_relayed_as_sums(kept: Kept) -> None:
    for name in ("actor-0", "actor-1"):
        archive = (StageArchive("1-1", 128.0, (3, 1), (0, 2)),)
        kept.send(msgspec.structs.replace(status(decisions=10), name=name, archive=archive))
    while (own := kept.next(Status, "learner")).metrics.get("decisions") != 20:
        pass
    assert own.archive == (StageArchive("1-1", 128.0, (6, 2), (0, 4)),)
    kept.journal.close()
    accumulator = EventAccumulator(str(kept.directory))
    accumulator.Reload()
    for name, counts in (("frontier", [6, 2]), ("ends", [0, 4])):
        value = accumulator.Histograms(f"restarts/{name}/1-1")[-1].histogram_value
        assert (value.bucket_limit, value.bucket) == ([128, 256], counts)


def test_statuses_received_before_close_are_in_last_point(kept: Kept) -> None:
    kept.own()
    for decisions in (10, 20, 30):
        kept.send(status(decisions))
    while kept.next(Status, "actor").metrics["decisions"] < 30:  # relayed, so the journal has been handed it
        pass
    kept.journal.close()
    assert kept.journal.totals.decisions == 30
    assert kept.points("train/updates")[-1][0] == 30
    assert kept.own(decisions=30)


def test_point_averages_step_metrics_and_keeps_newest_counters(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FIRST_SUMMARY_S", math.inf)
    kept = Kept(directory, log_interval_s=1e6)
    zeros = np.zeros(1)
    for update, loss in enumerate((1.0, 2.0, 6.0), start=1):
        report = StepReport(
            update, 7.0, zeros, waited_s=update, counters={"bad_steps": update}, metrics={"train/loss": loss}
        )
        kept.journal.record(report)
    kept.journal.record(dataclasses.replace(report, waited_s=4.0, metrics={}))  # a pass without a step
    own = kept.own(updates=3, bad_steps=3, waited_s=4.0)
    assert own.progress_time == 7.0
    kept.journal.close()
    assert kept.points("train/loss") == [(0, 3.0)]
    kept.close()


def test_a_slow_disk_delays_no_parameters(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, done = threading.Event(), threading.Event()

    def write_slowly(*_: object) -> None:
        writing.set()
        assert done.wait(PATIENCE_S)

    monkeypatch.setattr(Board, "write", write_slowly)
    assert writing.wait(PATIENCE_S)
    for version in range(1, 4):
        tensors = make_tensors({"weight": np.zeros(3, np.float32)})
        kept.publisher.publish(Parameters("run", 1, version, 0, "network", "experience", tensors))
        while kept.next(Parameters).version < version:
            pass
    kept.send(status(decisions=10))
    assert kept.next(Status, "actor").metrics == {"decisions": 10}  # relayed meanwhile
    assert kept.journal.totals.decisions == 0
    done.set()
    kept.own(decisions=10)


def test_resumed_run_continues_totals_and_updates(directory: Path) -> None:
    origin = Origin("run", 1, Totals(episodes=7, decisions=100))
    kept = Kept(directory, origin, StepReport(update=50, progress_time=0.0, rank_waited_s=np.zeros(1)))
    kept.send(status(decisions=5, episodes=1))
    kept.own(**{"decisions": 105, "rollout/episodes": 8, "train/updates": 50, "updates": 0})
    kept.close()
    assert kept.journal.totals == Totals(episodes=8, decisions=105)


def test_each_rank_has_a_wait_curve(directory: Path) -> None:
    kept = Kept(directory, begin=StepReport(update=0, progress_time=0.0, rank_waited_s=np.zeros(2)))
    kept.journal.record(StepReport(update=0, progress_time=0.0, rank_waited_s=np.array([1e9, 0.0])))
    kept.own(**{"wait/rank_0": 1.0, "wait/rank_1": 0.0})
    kept.close()


@pytest.mark.parametrize(
    ("settings", "updates", "totals", "elapsed_s", "expected"),
    [
        ({"max_updates": 9}, 8, Totals(), 0.0, None),
        ({"max_updates": 9}, 9, Totals(), 0.0, "9 of 9 updates"),
        ({"episodes": 3}, 0, Totals(episodes=2), 0.0, None),
        ({"episodes": 3}, 0, Totals(episodes=4), 0.0, "4 of 3 episodes"),
        ({"max_decisions": 50}, 0, Totals(decisions=60), 0.0, "60 of 50 decisions"),
        ({"max_minutes": 0.5}, 0, Totals(), 29.9, None),
        ({"max_minutes": 0.5}, 0, Totals(), 45.0, "0.75 of 0.5 minutes"),
        ({"episodes": None}, 10**9, Totals(10**9, 10**9), 1e9, None),
    ],
)
def test_a_budget_is_spent_once_it_is_reached(
    settings: dict[str, Any], updates: int, totals: Totals, elapsed_s: float, expected: str | None
) -> None:
    assert spent_budget(Run(**settings), updates, totals, elapsed_s) == expected


def saver_of(directory: Path, origin: Origin) -> tuple[Saver, Trainer]:
    return Saver(CARTPOLE, directory, origin, "experience", "network"), Trainer(CARTPOLE, env_spec(CARTPOLE.env))


def test_checkpoint_restores_totals_and_raises_incarnation(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, Origin.of(None))
    info = dict.fromkeys(TOTALS, 5.0)
    totals = Totals(episodes=3, decisions=40, info=info, low_epsilon_return=2.5)
    saver.save(trainer, totals, elapsed_s=12.5)
    saved = load(tmp_path)
    assert (saved.experience, saved.network, saved.counters["updates"]) == ("experience", "network", 0)
    origin = Origin.of(saved)
    assert (origin.run_id, origin.elapsed_s, origin.best_score) == (saved.run_id, 12.5, 2.5)
    assert origin.learner_incarnation > saved.learner_incarnation
    assert origin.totals == Totals(episodes=3, decisions=40, info=info)


def test_only_a_better_score_replaces_the_best(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, Origin("run", 1, best_score=1.0))
    for score in (None, 0.5, 1.0):
        saver.save(trainer, Totals(low_epsilon_return=score), 0.0)
        assert load(tmp_path).best_score == 1.0
        assert not (tmp_path / "best.safetensors").exists()
    saver.save(trainer, Totals(low_epsilon_return=1.5), 0.0)
    assert load(tmp_path / "best.safetensors").best_score == load(tmp_path).best_score == 1.5


def test_failed_write_of_best_does_not_change_the_best_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver, trainer = saver_of(tmp_path, Origin("run", 1))
    saver.save(trainer, Totals(), 0.0)
    in_the_way = tmp_path / ".best.safetensors.tmp"
    in_the_way.mkdir()
    saver.save(trainer, Totals(low_epsilon_return=1.0), 0.0)
    assert "checkpoint not saved, training continues" in caplog.text
    assert load(tmp_path).best_score is None
    in_the_way.rmdir()
    saver.save(trainer, Totals(low_epsilon_return=1.0), 0.0)
    assert load(tmp_path / "best.safetensors").best_score == load(tmp_path).best_score == 1.0


def test_parameters_that_are_not_finite_replace_no_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver, trainer = saver_of(tmp_path, Origin("run", 1))
    saver.save(trainer, Totals(), 0.0)
    before = (tmp_path / "latest.safetensors").read_bytes()
    with torch.no_grad():
        next(trainer.online.parameters()).fill_(torch.nan)
    saver.save(trainer, Totals(low_epsilon_return=1.0), 0.0)
    assert "checkpoint not saved because parameters are not finite; the previous one is kept" in caplog.text
    assert (tmp_path / "latest.safetensors").read_bytes() == before
