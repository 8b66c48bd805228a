"""Evaluating a live run while it trains."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from apex_zmq import checkpoint, cli
from apex_zmq import config as settings
from apex_zmq.transport import Inbox
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Status, decode_status

from .checkpoints import CARTPOLE, untrained
from .conftest import ROOT, StartProgram


def test_a_live_run_is_evaluated_every_few_versions_and_its_best_kept(start: StartProgram, tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "cartpole.yaml")
    train = start("train", "--config", config, "--run-dir", "run", "--set", "replay.min_size=200")
    train.wait_for(r"updates [1-9]")
    trained = settings.from_tree(checkpoint.load(tmp_path / "run").config, "checkpoint")
    statuses: Inbox[Status] = Inbox.subscribe(
        trained.addresses.parameters, {Kind.RELAYED_STATUS: lambda parts: decode_status(parts, Kind.RELAYED_STATUS)}
    )
    follow = start("eval", "--checkpoint", "run", "--follow", "--every", "100", "--episodes", "2", "--json")
    follow.wait_for(r'"version": ([2-9]\d\d|\d{4})')
    figures = [json.loads(line) for line in follow.lines]
    versions = [each["version"] for each in figures]
    assert len(versions) >= 2
    assert all(later - earlier >= 100 for earlier, later in itertools.pairwise(versions))
    assert all(each["episodes"] == 2 for each in figures)

    heard = None
    while heard is None or heard.role != "evaluator" or "mean_return" not in heard.metrics:
        heard = statuses.receive(timeout_s=60)
        assert heard is not None
    assert not heard.episodes  # the run's own returns are its actors'
    statuses.close()

    follow.interrupt()
    assert follow.wait() == 0, follow.output
    figures = [json.loads(line) for line in follow.lines]
    best = checkpoint.load(tmp_path / "run" / "best-eval.safetensors")
    assert best.best_score == max(each["mean_return"] for each in figures)
    assert best.counters["updates"] in [each["update"] for each in figures if each["mean_return"] == best.best_score]
    train.interrupt()
    assert train.wait() == 0, train.output

    played = start("eval", "--checkpoint", "run", "--episodes", "1", "--json")
    assert played.wait() == 0, played.output
    assert json.loads(played.lines[-1])["checkpoint"] == "run/best-eval.safetensors"


def test_a_run_directory_stands_for_its_best(tmp_path: Path) -> None:
    assert checkpoint.to_play(tmp_path) == tmp_path
    for name in ("latest", "best", "best-eval"):
        path = tmp_path / f"{name}.safetensors"
        checkpoint.save(path, untrained(CARTPOLE))
        assert checkpoint.to_play(tmp_path) == path
        assert checkpoint.to_play(path) == path


@pytest.mark.parametrize("wrong", [["--every", "0"], ["--video", "a.gif"], ["--checkpoint", __file__]])
def test_following_takes_a_run(tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.evaluate(["--checkpoint", str(tmp_path), "--follow", *wrong]) == 2
    assert "--follow takes a run directory" in capsys.readouterr().err
