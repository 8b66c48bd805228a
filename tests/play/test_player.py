"""What plays checkpoints: protocols, figures, videos and the programs that make them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pygame
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor, nn

from apex_zmq.cli import tools
from apex_zmq.config import loading
from apex_zmq.envs.lanes import GymLanes
from apex_zmq.envs.make import Step, make_lanes
from apex_zmq.play import viewer
from apex_zmq.play.evaluator import evaluate, wilson
from apex_zmq.play.picture import COLUMNS, ROWS, Scene, draw
from apex_zmq.play.player import Player, Protocol
from apex_zmq.rundir import checkpoint
from apex_zmq.types import UInt8s

from ..checkpoints import CARTPOLE, MARIO, read_video, untrained


class Alternating(nn.Module):
    """Prefers one action, then the other."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, observation: Tensor) -> Tensor:
        self.calls += 1
        return torch.eye(2)[self.calls % 2][None]


class Decision(NamedTuple):
    best: int
    chosen: int
    played: int


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Actions that reach CartPole."""
    actions: list[int] = []
    step = GymLanes.step

    def record(lanes: GymLanes, lane: int, action: int) -> Step:
        actions.append(action)
        return step(lanes, lane, action)

    monkeypatch.setattr(GymLanes, "step", record)
    return actions


def alternating(protocol: Protocol, played: list[int]) -> list[list[Decision]]:
    """Thirty episodes of an agent that was trained with sticky actions of its own."""
    player = Player(loading.replace(CARTPOLE, {"env.sticky": 0.5}), protocol, seed=3)
    player.network = Alternating()
    episodes = [list(player.episode())[:-1] for _ in range(30)]
    player.close()
    actions = iter(played)
    return [[Decision(int(m.q.argmax()), m.action or 0, next(actions)) for m in episode] for episode in episodes]


def test_greedy_always_takes_the_best_action(played: list[int]) -> None:
    for decision in itertools.chain(*alternating("greedy", played)):
        assert decision.best == decision.chosen == decision.played


def test_sticky_repeats_the_last_action_with_probability_0_25(played: list[int]) -> None:
    repeated = []
    for episode in alternating("sticky", played):
        assert episode[0].played == episode[0].best
        for before, decision in itertools.pairwise(episode):
            assert decision.chosen == decision.best
            if before.played != decision.best:
                repeated.append(decision.played == before.played)
            else:
                assert decision.played == decision.best
    assert len(repeated) > 400
    assert np.mean(repeated) == pytest.approx(0.25, abs=0.06)


def test_noop_takes_random_actions_with_low_probability(played: list[int]) -> None:
    decisions = list(itertools.chain(*alternating("noop", played)))
    assert all(decision.chosen == decision.played for decision in decisions)
    assert 0 < np.mean([decision.chosen != decision.best for decision in decisions]) < 0.02


def test_episode_reports_length_action_and_return() -> None:
    player = Player.of(untrained(CARTPOLE), "greedy", 0)
    moments = list(player.episode())
    assert [moment.length for moment in moments] == list(range(len(moments)))
    assert [moment.action is None for moment in moments] == [False] * (len(moments) - 1) + [True]
    assert moments[-1].episode_return == moments[-1].length  # CartPole earns 1 per decision
    again = Player.of(untrained(CARTPOLE), "greedy", 0)
    assert [moment.action for moment in again.episode()] == [moment.action for moment in moments]


def test_evaluate_summarizes_all_episodes() -> None:
    figures = evaluate(untrained(MARIO), 2, "sticky", 5)
    assert figures == {
        "env": "SuperMarioBros",
        "protocol": "sticky",
        "seed": 5,
        "episodes": 2,
        "mean_return": pytest.approx(figures["mean_return"]),
        "mean_length": 12,
        "stages": ["1-1"],
        "clear_rate": 0.0,
        "clear_rate_95": [0.0, 0.658],  # z^2 / (n + z^2), z = 1.96
        "mean_stages_cleared": 0.0,
        "mean_x": pytest.approx(figures["mean_x"]),
        "best_x": pytest.approx(figures["mean_x"], abs=60),
        "stall_rate": 0.0,
        "warps": 0,
        "loops": 0,
    }
    assert 40 < figures["mean_x"] <= figures["best_x"] < 240


@given(st.integers(1, 2000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_interval_matches_scipy(successes: tuple[int, int]) -> None:
    cleared, count = successes
    expected = binomtest(cleared, count).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(cleared / count, count), expected, atol=1e-4)


def test_checkpoint_plays_on_the_requested_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, untrained(MARIO))

    def farthest(emulator: str) -> float:
        arguments = ["--protocol", "greedy", "--episodes", "1", "--json", "--emulator", emulator]
        assert tools.evaluate(["--checkpoint", str(path), *arguments]) == 0
        x: float = json.loads(capsys.readouterr().out)["mean_x"]
        return x

    assert farthest("fceumm") > farthest("nes-py") > 40  # buttons arrive there a frame later (docs/CONFORMANCE.md)


def test_eval_options_affect_the_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "a.safetensors", untrained(CARTPOLE, seed=6))  # one that takes both actions

    def figures(**options: object) -> dict[str, object]:
        arguments = [each for name, value in options.items() for each in (f"--{name}", str(value))]
        assert tools.evaluate(["--checkpoint", str(tmp_path / "a.safetensors"), "--json", *arguments]) == 0
        played: dict[str, object] = json.loads(capsys.readouterr().out)
        return {name: value for name, value in played.items() if name not in options}

    assert figures(seed=1) == figures(seed=1) != figures(seed=2)
    assert figures(seed=1)["episodes"] == 10
    assert figures(seed=1, protocol="greedy")["mean_length"] != figures(seed=1, protocol="sticky")["mean_length"]
    assert figures(seed=1, episodes=3)["mean_length"] != figures(seed=1, episodes=4)["mean_length"]


def test_play_options_affect_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shades = itertools.cycle(range(256))  # Pillow keeps one of pictures in a row that are the same
    monkeypatch.setattr(viewer, "draw", lambda scene: np.full((8, 8, 3), next(shades), np.uint8))
    checkpoint.save(tmp_path / "a.safetensors", untrained(CARTPOLE, seed=6))

    def pictures(*options: str) -> int:
        given = ["--checkpoint", str(tmp_path / "a.safetensors"), "--video", str(tmp_path / "a.gif"), *options]
        assert tools.play(given) == 0
        with Image.open(tmp_path / "a.gif") as image:
            return int(image.n_frames)  # type: ignore[attr-defined]

    one = pictures("--seed", "1", "--protocol", "greedy")
    assert pictures("--seed", "2", "--protocol", "greedy") != one
    assert pictures("--seed", "1", "--protocol", "sticky") != one
    assert pictures("--seed", "1", "--protocol", "greedy", "--episodes", "2") > one


@pytest.fixture
def mario(tmp_path: Path) -> str:
    path = tmp_path / "mario.safetensors"
    checkpoint.save(path, untrained(MARIO))
    return str(path)


def test_eval_writes_a_video_of_the_game(mario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", mario, "--episodes", "2", "--protocol", "greedy", "--seed", "1", "--json"]
    assert tools.evaluate([*arguments, "--video", str(tmp_path / "a.gif")]) == 0
    with_video = json.loads(capsys.readouterr().out)
    assert tools.evaluate(arguments) == 0
    assert json.loads(capsys.readouterr().out) == with_video  # watching changes nothing

    lanes = make_lanes(loading.replace(MARIO, {"env.noop_max": 0}).env, 1, 1, render=True)
    lanes.reset(0)
    first = lanes.render(0)
    lanes.close()
    with Image.open(tmp_path / "a.gif") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), first)
        total = 0
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            total += image.info["duration"]
    assert total == 70 * 2 * (with_video["mean_length"] + 1)


def test_play_writes_a_video_of_the_whole_picture(mario: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert tools.play(["--checkpoint", mario, "--protocol", "greedy", "--seed", "1", "--video", str(path)]) == 0
    pictures, rate = read_video(path)
    assert pictures.shape == (12 + 1, ROWS, COLUMNS, 3)
    assert rate == pytest.approx(60.1 / 4, abs=0.1)


def test_play_in_a_window_ends_with_the_episode(mario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert tools.play(["--checkpoint", mario, "--episodes", "1"]) == 0


def test_interrupted_play_keeps_the_pictures_shown(mario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    pictures: list[Scene] = []

    def draw_three(scene: Scene) -> UInt8s:
        if len(pictures) == 3:
            raise KeyboardInterrupt
        pictures.append(scene)
        return draw(scene)

    monkeypatch.setattr(viewer, "draw", draw_three)
    assert tools.play(["--checkpoint", mario, "--video", str(path)]) == 130
    assert len(read_video(path)[0]) == 3
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert tools.play(["--checkpoint", mario]) == 130
    assert not pygame.display.get_init()
