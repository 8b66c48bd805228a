"""Evaluating a live run while it trains."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zmq.auth import load_certificate

from apex_zmq.agent.networks import to_arrays
from apex_zmq.cli import tools
from apex_zmq.config import loading
from apex_zmq.errors import MismatchError
from apex_zmq.net.keys import make_client, make_servers
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.play import evaluator
from apex_zmq.play.player import Player
from apex_zmq.roles.learner.journal import Journal, Origin, StepReport
from apex_zmq.roles.learner.publisher import Publisher
from apex_zmq.rundir import checkpoint
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Parameters, Status, decode_relayed_status, make_tensors

from ..checkpoints import CARTPOLE, untrained
from ..conftest import ROOT, StartProgram

PATIENCE_S = 30.0


def events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return accumulator


@pytest.mark.long
def test_live_run_is_evaluated_periodically_and_best_is_kept(
    start: StartProgram, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / "cartpole.yaml")
    settings = ("--set", "replay.min_size=200", "--set", "telemetry.log_interval_s=0.5", "--num-actors", "1")
    train = start("train", "--config", config, "--run-dir", "run", *settings)
    train.wait_for("learner.*progress")
    follow = start("eval", "--checkpoint", "run", "--follow", "--every", "20", "--episodes", "2", "--json")
    first = json.loads(follow.wait_for('"version"'))["version"]
    follow.wait_for(f'"version": (?!{first},)')
    follow.interrupt()
    assert follow.wait() == 0, follow.output
    train.interrupt()
    assert train.wait() == 0, train.output

    figures = [json.loads(line) for line in follow.lines if line.startswith("{")]  # SDL may have remarks
    versions = [each["version"] for each in figures]
    assert len(versions) >= 2
    assert all(later - earlier >= 20 for earlier, later in itertools.pairwise(versions))
    assert all(each["episodes"] == 2 for each in figures)
    best = checkpoint.load(tmp_path / "run" / "best-eval.safetensors")
    assert best.best_score == max(each["mean_return"] for each in figures)
    assert best.counters["updates"] in [each["update"] for each in figures if each["mean_return"] == best.best_score]

    written = events(tmp_path / "run" / "eval")
    curve = [(event.step, event.value) for event in written.Scalars("eval/mean_reward")]
    assert curve == [(each["decisions"], pytest.approx(each["mean_return"])) for each in figures]
    decisions = [event.step for event in events(tmp_path / "run").Scalars("train/updates")]
    assert {step for step, _ in curve} <= set(decisions)  # on the axis of the run's own curves

    assert tools.evaluate(["--checkpoint", str(tmp_path / "run"), "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(tmp_path / "run" / "best-eval.safetensors")


class Run:
    """The learner's publisher and journal, without a learner: they publish what the test tells them to."""

    def __init__(self, directory: Path, settings: dict[str, object]) -> None:
        addresses = {f"addresses.{name}": f"ipc://{directory}/{name}" for name in ("parameters", "status")}
        intervals = {"telemetry.log_interval_s": 0.1, "telemetry.status_interval_s": 0.1}
        self.config = loading.replace(CARTPOLE, {**addresses, **intervals, **settings})
        self.checkpoint = untrained(self.config)
        self._publisher = Publisher(Links(self.config))
        begin = StepReport(update=0, progress_time=time.time(), rank_waited_s=np.zeros(1))
        self._journal = Journal(self.config, directory, Origin.of(None), begin, self._publisher)
        self._publisher.start()
        self._journal.start()

    def publish(self, version: int, seed: int = 0, run: str = "run") -> None:
        """Parameters from a seed, with a hundred updates to a version."""
        arrays = to_arrays(Player.of(untrained(self.config, seed), "greedy", 0).network)
        signatures = network_signature(arrays), experience_signature(self.config)
        self._publisher.publish(Parameters(run, 7, version, 100 * version, *signatures, make_tensors(arrays)))

    def tell(self, decisions: int) -> None:
        """An actor's decisions so far, once the learner's own status counts them."""
        now = time.time()
        actor = Status("actor", "actor", "host", 1, 1, now, now, now, {"decisions": decisions})
        links = Links(self.config)
        relayed: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
        with contextlib.closing(relayed), contextlib.closing(links.connect("status")) as statuses:
            wait([], [statuses], PATIENCE_S)
            assert statuses.send(encode(Kind.STATUS, actor))
            while (status := relayed.receive(PATIENCE_S)) is not None:
                if status.role == "learner" and status.metrics.get("decisions") == decisions:
                    return
        raise AssertionError("the learner's status does not count the decisions")

    def close(self) -> None:
        self._journal.close()
        self._publisher.close()


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tools.evaluate --follow` lowers the priority of its process, here that of all tests after it."""
    monkeypatch.setattr("apex_zmq.cli.tools.os.nice", lambda _: 0)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs = []

    def begin_run(**settings: object) -> Run:
        runs.append(Run(tmp_path, {name.replace("__", "."): value for name, value in settings.items()}))
        return runs[-1]

    yield begin_run
    for run in runs:
        run.close()


def test_only_a_better_score_replaces_best_eval(tmp_path: Path, begin: Callable[..., Run]) -> None:
    run = begin()

    def score(seed: int) -> float:
        mean: float = evaluator.evaluate(untrained(CARTPOLE, seed), 3, "greedy", 0)["mean_return"]
        return mean

    worse, kept, *_, better = sorted(range(12), key=score)
    path = tmp_path / "best-eval.safetensors"
    checkpoint.save(path, untrained(CARTPOLE, kept))
    before = path.read_bytes()
    following = evaluator.follow(run.checkpoint, tmp_path, 1, 20, "greedy", 0)
    run.tell(decisions=1000)
    run.publish(1, worse)
    low = next(following)
    assert path.read_bytes() == before
    run.tell(decisions=2000)
    run.publish(2, better)
    high = next(following)
    assert low["mean_return"] + 5 < high["mean_return"]
    following.close()  # type: ignore[attr-defined]
    promoted = checkpoint.load(path)
    assert (promoted.best_score, promoted.learner_incarnation, promoted.counters) == (
        high["mean_return"],
        7,
        {"updates": 200},
    )

    written = events(tmp_path / "eval")
    assert [event.step for event in written.Scalars("eval/mean_ep_length")] == [1000, 2000]
    (film,) = written.Images("eval/best")
    assert (film.step, film.width, film.height) == (2000, 240, 160)
    with Image.open(io.BytesIO(film.encoded_image_string)) as image:
        assert (image.format, image.size) == ("GIF", (240, 160))  # CartPole draws 600 x 400
        assert image.n_frames > 1  # type: ignore[attr-defined]


def test_failed_write_of_best_does_not_change_the_best_score(tmp_path: Path, begin: Callable[..., Run]) -> None:
    run = begin()
    in_the_way = tmp_path / ".best-eval.safetensors.tmp"
    in_the_way.mkdir()
    following = evaluator.follow(run.checkpoint, tmp_path, 1, 3, "greedy", 0)
    run.publish(1)
    next(following)
    assert not (tmp_path / "best-eval.safetensors").exists()
    in_the_way.rmdir()
    run.publish(2)  # the same once more: no better
    score = next(following)["mean_return"]
    following.close()  # type: ignore[attr-defined]
    assert checkpoint.load(tmp_path / "best-eval.safetensors").best_score == score


def test_another_run_at_the_same_address_is_not_followed(tmp_path: Path, begin: Callable[..., Run]) -> None:
    run = begin()
    following = evaluator.follow(run.checkpoint, tmp_path, 1, 1, "greedy", 0)
    run.publish(1)
    assert next(following)["version"] == 1
    before = (tmp_path / "best-eval.safetensors").read_bytes()
    run.publish(2, run="other")
    with pytest.raises(MismatchError, match="now publishes run other, not run"):
        next(following)
    assert (tmp_path / "best-eval.safetensors").read_bytes() == before


def test_versions_within_the_every_interval_are_skipped(tmp_path: Path, begin: Callable[..., Run]) -> None:
    run = begin()
    following = evaluator.follow(run.checkpoint, tmp_path, 3, 1, "greedy", 0)
    run.publish(1)
    assert next(following)["version"] == 1
    run.publish(3)
    later = threading.Timer(0.5, run.publish, [4])
    later.start()
    assert next(following)["version"] == 4
    later.join()
    following.close()  # type: ignore[attr-defined]


def test_run_with_keys_is_followed_with_evaluator_keys(
    tmp_path: Path, begin: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    make_servers(keys)
    run = begin(addresses__keys=str(keys / "learner"))
    checkpoint.save(tmp_path / "latest.safetensors", run.checkpoint)
    follow = ["--checkpoint", str(tmp_path), "--follow"]
    for arguments, reason in (
        ([], "pass the directory of an evaluator's keys with --keys"),
        (["--keys", "nowhere"], "nowhere"),
    ):
        assert tools.evaluate([*follow, *arguments]) == 2
        assert reason in capsys.readouterr().err
    judge = make_client(keys, "judge", "evaluator")
    run.publish(1)
    following = evaluator.follow(run.checkpoint, tmp_path, 1, 1, "greedy", 0, judge)
    assert next(following)["version"] == 1
    following.close()  # type: ignore[attr-defined]
    for path in keys.glob("*/identity.key_secret"):
        _, secret = load_certificate(path)
        assert secret is not None
        for written in tmp_path.glob("*"):
            assert not written.is_file() or secret not in written.read_bytes()


def test_run_that_cannot_be_rendered_is_followed_without_films(
    tmp_path: Path, begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain_envs.py").write_text("import gymnasium\ndef make():\n    return gymnasium.make('CartPole-v1')\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = begin(env__id="plain_envs:make")
    run.publish(1)
    following = evaluator.follow(run.checkpoint, tmp_path, 1, 1, "noop", 0)
    assert next(following)["mean_return"] >= 8
    following.close()  # type: ignore[attr-defined]
    assert "films of the best parameters are disabled: env.id plain_envs:make cannot be drawn" in caplog.text
    assert events(tmp_path / "eval").Tags()["images"] == []


def test_run_directory_resolves_to_its_best_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.to_play(tmp_path) == tmp_path
    for name in ("latest", "best", "best-eval"):
        path = tmp_path / f"{name}.safetensors"
        checkpoint.save(path, untrained(CARTPOLE))
        assert checkpoint.to_play(tmp_path) == path
        assert checkpoint.to_play(path) == path


@pytest.mark.parametrize("wrong", [["--every", "0"], ["--video", "a.gif"], ["--checkpoint", __file__]])
def test_follow_requires_a_run_directory(tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.evaluate(["--checkpoint", str(tmp_path), "--follow", *wrong]) == 2
    assert "--follow takes a run directory" in capsys.readouterr().err


def test_option_every_requires_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.evaluate(["--checkpoint", str(tmp_path), "--every", "5"]) == 2
    assert "--every and --keys need --follow" in capsys.readouterr().err
