"""The tables of the documents match the files under docs/results, and those files are written the same twice."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apex_zmq.play.player import Player
from apex_zmq.rundir.checkpoint import load, save

from ..checkpoints import MARIO, untrained

pytest.importorskip("matplotlib")
results = pytest.importorskip("benchmarks.results")
curves = pytest.importorskip("benchmarks.curves")
pictures = pytest.importorskip("benchmarks.pictures")
learning = pytest.importorskip("benchmarks.learning")
queued = pytest.importorskip("benchmarks.runs")
csv_files = pytest.importorskip("benchmarks.csv_files")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 30))
def test_moving_means(values: list[float], window: int) -> None:
    expected = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(curves.moving_mean(np.array(values), window), expected, atol=1e-9)


EPISODES = [
    # minutes, decisions, epsilon, cleared: one that clears by a lane that explores comes first
    (1.0, 1_000, 0.4, 0),
    (2.0, 2_000, 0.16, 1),
    *((3.0 + index, 3_000 + index, 0.001, index % 2) for index in range(40)),
]


COLUMNS = ("minutes", "decisions", "epsilon", "stage", "return", "length", "max_x", "cleared")
EVALUATION = ("minutes", "decisions", "protocol", "seed", "episodes", "clear_rate")


def write_run(
    directory: Path, episodes: Iterable[tuple[float, int, float, int]], evaluations: Sequence[tuple[object, ...]] = ()
) -> None:
    rows = [(minutes, decisions, eps, "1-1", 1, 1, 100, hit) for minutes, decisions, eps, hit in episodes]
    write(queued.episodes_file("run", directory), COLUMNS, rows)
    write(queued.evaluations_file("run", directory), EVALUATION, evaluations)
    about = {"algorithm": "apex", "name": "run", "settings": {}}
    queued.about_file("run", directory).write_text(json.dumps(about))


def write(path: Path, columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    csv_files.write_csv(path, columns, [dict(zip(columns, row, strict=True)) for row in rows])


def test_milestones_of_a_run_are_computed(tmp_path: Path) -> None:
    evaluations = [
        (5, 50, "noop", 20_000, 100, 0.89),
        (9, 90, "noop", 20_000, 100, 0.9),
        (9, 90, "noop", 30_000, 100, 0.5),
    ]
    write_run(tmp_path, EPISODES, evaluations)
    result = curves.read("run", tmp_path)
    assert curves.first_clear(result) == (2.0, 2_000)
    assert curves.half_clear(result) == (22.0, 3_019)  # the twentieth of them
    assert curves.solved(result) == (9, 90)
    assert result.fresh("noop")["clear_rate"] == "0.5"


def test_the_table_of_the_game_has_a_row_per_stage(tmp_path: Path) -> None:
    fresh = [(9, 90, protocol, 30_000, 100, rate) for protocol, rate in (("noop", 0.5), ("sticky", 0.2), ("greedy", 1))]
    write_run(tmp_path, EPISODES, fresh)
    about = {"algorithm": "apex", "name": "run", "seed": 1, "settings": {"env.stages": "[7-2]"}}
    queued.about_file("run", tmp_path).write_text(json.dumps(about))
    first = curves.read("run", tmp_path)
    repeat = replace(first, about=about | {"seed": 2})
    row, repeated = results.game([first, repeat]).splitlines()[-2:]
    assert repeated.startswith("| 7-2, seed 2 | ")
    assert [cell.strip() for cell in row.split("|")[1:7]] == [
        "7-2",
        "4.0 min, 3k",
        "22.0 min, 3k",
        "42",
        "3k",
        "0.50 (0.40 to 0.60)",
    ]
    pictures.draw_game([first, repeat], tmp_path / "game.png")
    assert (tmp_path / "game.png").stat().st_size > 10_000


def test_the_table_of_atari_games_shows_returns(tmp_path: Path) -> None:
    columns = ("minutes", "decisions", "epsilon", "stage", "return", "length")
    rows = [(1.0, 1000, 0.4, "", 0, 9), (2.0, 2000, 0.4, "", 300, 9), (7.0, 7000, 0.001, "", 100, 9)]
    write(queued.episodes_file("run", tmp_path), columns, rows)
    write(queued.evaluations_file("run", tmp_path), EVALUATION, [])
    about = {"algorithm": "apex", "name": "atari-Pitfall-restarts", "settings": {}}
    queued.about_file("run", tmp_path).write_text(json.dumps(about))
    row = results.atari([curves.read("run", tmp_path)]).splitlines()[-1]
    assert row == "| Pitfall-restarts | 7k | 2.0 min, 2k | 300 | 100.0 of 1 |"


def test_all_episodes_count_when_lanes_share_one_epsilon(tmp_path: Path) -> None:
    write_run(tmp_path, [(minutes, decisions, 0.05, cleared) for minutes, decisions, _, cleared in EPISODES])
    assert len(curves.read("run", tmp_path).low.minutes) == len(EPISODES)


def test_trial_too_slow_for_early_window_shows_not_reached(tmp_path: Path) -> None:
    for decisions, early in ((190_000, "not reached"), (210_000, "1.00")):
        write_run(tmp_path, [(15.0, decisions, 0.001, 1)])
        row = results.comparison([curves.read("run", tmp_path)], "sweep").splitlines()[-1]
        assert row.split("|")[5].strip() == early


def test_the_documents_are_up_to_date() -> None:
    tables = results.tables(results.read_all())
    documents = [path.read_text() for path in results.DOCUMENTS]
    for document in documents:
        assert results.fill(document, tables) == document
    marks = [match["name"] for document in documents for match in results.MARKED.finditer(document)]
    assert len(marks) == len(set(marks))
    assert set(tables) <= set(marks)
    groups = {run.group for run in queued.QUEUE}  # marks of a group without results are empty
    assert set(marks) <= groups | set(tables), "misspelled"
    for path in results.CARDS:
        assert "evaluation" in {match["name"] for match in results.MARKED.finditer(path.read_text())}
        assert results.card(path) == path.read_text()


def test_the_common_card_of_the_models_is_up_to_date() -> None:
    card = results.game_card(results.read_all())
    assert card == results.GAME_CARD.read_text()
    assert "| [1-1](mario-1-1/README.md) | 1000 | 0.95 (0.94 to 0.96) |" in card


def test_the_table_of_models_says_which_stages_have_none(tmp_path: Path) -> None:
    columns = ("emulator", "protocol", "seed", "episodes", "clear_rate", "mean_x")
    figures = [
        ("fceumm", "noop", 1, 100, 0.5, 1000),
        ("fceumm", "noop", 2, 300, 0.7, 2000),
        ("nes-py", "noop", 1, 100, 0.1, 100),
        ("fceumm", "sticky", 1, 100, 0.2, 900),
        ("fceumm", "greedy", 1, 1, 1, 3000),
    ]
    for stage in ("7-2", "7-3"):
        (tmp_path / f"mario-{stage}").mkdir()
    write(tmp_path / "mario-7-2/evaluation.csv", columns, figures)
    write_run(tmp_path, EPISODES, [(9, 90, "noop", 30_000, 100, 0.31)])
    run = curves.read("run", tmp_path)
    trained = [
        replace(run, about={"seed": seed, "settings": {"env.stages": f"[{stage}]"}})
        for stage, seed in (("7-2", 1), ("7-3", 1), ("7-4", 1), ("8-1", 2))
    ]
    _, _, row, _, failed, _, others = results.models(trained, tmp_path).splitlines()
    assert row == "| 7-2 | 400 | 0.65 (0.60 to 0.70) | 0.20 (0.13 to 0.29) | 1 of 1 | 1,750 |"
    assert failed.endswith(": 7-4 (0.31).")
    assert len(others.split(", ")) == 30
    assert "7-3" in others  # exported, but not evaluated
    assert "8-1" in others  # only a repeat


def test_a_run_starts_from_the_best_checkpoint_of_another() -> None:
    run = next(run for run in queued.QUEUE if run.init_from == "headline-1")
    best = curves.read("headline-1").fresh("noop")["checkpoint"]
    command = queued.command(run, Path("there"))
    assert command[command.index("--init-from") + 1] == f"build/learning/headline-1/{best}"


@pytest.mark.parametrize(
    ("cleared", "expected"),
    [("1" * 36 + "0" * 4, True), ("0" + "1" * 36 + "0" * 4, True), ("1" * 35 + "0" * 5, False), ("1" * 39, False)],
)
def test_a_stage_is_learned_once_most_of_the_last_low_epsilon_episodes_cleared_it(cleared: str, expected: bool) -> None:
    rows = [{"epsilon": "0.001", "cleared": digit} for digit in cleared]
    others = [{"epsilon": "0.4", "cleared": "0"}] * 100
    assert learning.learned(rows + others) is expected


@pytest.mark.parametrize(("clears", "ended_early"), [(40, True), (35, False)])
def test_a_run_is_interrupted_once_its_stage_is_learned(
    clears: int, ended_early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "AFTER_MINUTES", 0.0)
    monkeypatch.setattr(learning, "POLL_S", 0.01)
    written, watched = tmp_path / "written.csv", tmp_path / "episodes.csv"
    rows = [{"epsilon": "0.001", "cleared": int(number < clears)} for number in range(40)]
    csv_files.write_csv(written, ("cleared", "epsilon"), rows)
    with written.open("a") as file:
        file.write("1,")  # a row that the learner is writing
    run = (  # waits for the signal if it has learned the stage, else spends its budget
        "import os, signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(7)); "
        f"os.rename({str(written)!r}, {str(watched)!r}); {ended_early} and signal.pause()"
    )
    training = subprocess.Popen([sys.executable, "-c", run])
    assert learning._end_early(training, watched) is ended_early
    assert training.wait() == (7 if ended_early else 0)


def test_repeats_of_a_stage_are_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (queued.game_run("7-2", seed) for seed in (1, 2))
    assert (first.name, second.name) == ("game-7-2", "game-7-2-seed-2")
    assert "--seed 2" in " ".join(queued.command(second, Path("there")))
    row = {"seed": queued.FRESH_SEED, "protocol": "noop", "clear_rate": 1.0, "checkpoint": "step-1.safetensors"}
    monkeypatch.setattr(learning, "export", lambda source, path: pytest.fail(f"{path} is exported"))
    learning._publish(second, [row])


def test_every_stage_of_the_game_is_trained_with_the_recipe() -> None:
    runs = [run for run in queued.QUEUE if run.group == "game"]
    assert len({run.settings["env.stages"] for run in runs}) == 32
    assert all("configs/mario.yaml" in queued.command(run, Path("there")) for run in runs)


@pytest.mark.parametrize("name", ["headline-1", "headline-1-eval", "ppo-1", "stage-1-3"])
def test_results_read_and_written_again_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    stored = queued.RESULTS / f"{name}.csv.gz"
    rows = csv_files.read_csv(stored)
    csv_files.write_csv(tmp_path / "first.csv.gz", list(rows[0]), rows)
    csv_files.write_csv(tmp_path / "second.csv.gz", list(rows[0]), rows)
    assert (tmp_path / "first.csv.gz").read_bytes() == (tmp_path / "second.csv.gz").read_bytes()
    csv_files.write_csv(tmp_path / "plain.csv", list(rows[0]), rows)
    assert csv_files.read_csv(tmp_path / "plain.csv") == rows
    # Another zlib may compress otherwise; the text within is the same everywhere.
    assert gzip.decompress(stored.read_bytes()) == (tmp_path / "plain.csv").read_bytes()
    assert stored.read_bytes()[:10] == (tmp_path / "first.csv.gz").read_bytes()[:10]  # no time, no name


def git(directory: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=directory, text=True)


def test_a_queue_ends_with_one_commit_of_its_finished_runs(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "somebody")
    git(tmp_path, "config", "user.email", "somebody@example.org")
    directory = tmp_path / "docs" / "results"
    directory.mkdir(parents=True)
    (tmp_path / "staged.txt").write_text("not of the queue")
    git(tmp_path, "add", "staged.txt")
    model = queued.model_of("game-7-2", tmp_path / "models")
    model.parent.mkdir(parents=True)
    model.write_bytes(b"of an earlier run")
    (model.parent / "evaluation.csv").write_text("of an earlier run")
    git(tmp_path, "add", "models")
    git(tmp_path, "commit", "--quiet", "-m", "earlier", "--", "models")
    model.write_bytes(b"parameters")
    (model.parent / "evaluation.csv").unlink()  # as an export does
    for age, name in ((20, "game-7-2"), (30, "second"), (60, "first")):
        for of in (queued.episodes_file, queued.evaluations_file, queued.about_file):
            of(name, directory).write_bytes(b"{}")
        os.utime(queued.about_file(name, directory), (1e9 - age, 1e9 - age))
    queued.episodes_file("interrupted", directory).write_bytes(b"")
    assert learning.uncommitted(directory) == ["first", "second", "game-7-2"]
    learning.commit(["first", "second", "game-7-2"], directory)
    assert git(tmp_path, "log", "-1", "--format=%s%b").strip() == "results: add first, second, game-7-2"
    assert len(git(tmp_path, "ls-files", "docs").splitlines()) == 9
    assert git(tmp_path, "ls-files", "models").split() == ["models/mario-7-2/best.safetensors"]
    assert git(tmp_path, "status", "--porcelain", "-uall").splitlines() == [
        "A  staged.txt",
        "?? docs/results/interrupted.csv.gz",
    ]
    queued.evaluations_file("first", directory).write_bytes(b"evaluated again")
    assert learning.uncommitted(directory) == ["first"]


@pytest.mark.parametrize(("rate", "published"), [(0.49, False), (0.5, True)])
def test_a_stage_that_is_cleared_half_the_time_becomes_a_model(
    rate: float, published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "RUNS", tmp_path)
    model = queued.model_of("game-7-2", tmp_path / "models")
    monkeypatch.setattr(learning, "model_of", lambda name: model)
    (tmp_path / "game-7-2").mkdir()
    save(tmp_path / "game-7-2/step-1.safetensors", untrained(MARIO))
    run = next(run for run in queued.QUEUE if run.name == "game-7-2")
    row = {"seed": queued.FRESH_SEED, "protocol": "noop", "clear_rate": rate, "checkpoint": "step-1.safetensors"}
    learning._publish(run, [row])
    assert model.exists() is published
    if published:
        assert model.stat().st_size < 1_000_000
        assert {tensor.dtype for tensor in load(model).played.values()} == {torch.float16}
        player = Player.of(load(model), "noop", 0)
        assert max(moment.length for moment in player.episode()) > 0
        player.close()


def test_a_commit_of_many_runs_keeps_its_subject_short() -> None:
    names = [f"sweep-{number}" for number in range(30)]
    subject, body = learning.commit_message(names)
    assert len(subject) <= 72
    assert subject.startswith("results: add sweep-0, sweep-1, ")
    shown = subject.count("sweep-")
    assert subject.endswith(f" and {30 - shown} more")
    assert body.splitlines() == names
