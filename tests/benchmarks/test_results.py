"""What docs/RESULTS.md says is what the files under docs/results say."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
results = pytest.importorskip("benchmarks.results")
learning = pytest.importorskip("benchmarks.learning")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 30))
def test_moving_means(values: list[float], window: int) -> None:
    expected = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(results.moving_mean(np.array(values), window), expected, atol=1e-9)


EPISODES = [
    # minutes, decisions, epsilon, cleared: one that clears by a lane that explores comes first
    (1.0, 1_000, 0.4, 0),
    (2.0, 2_000, 0.16, 1),
    *((3.0 + index, 3_000 + index, 0.001, index % 2) for index in range(40)),
]


def write_run(directory: Path, episodes: Iterable[tuple[float, int, float, int]]) -> None:
    with (directory / "run.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("minutes", "decisions", "epsilon", "stage", "return", "length", "max_x", "cleared"))
        rows.writerows((minutes, decisions, eps, "1-1", 1, 1, 100, hit) for minutes, decisions, eps, hit in episodes)
    (directory / "run.json").write_text(json.dumps({"algorithm": "apex", "name": "run", "settings": {}}))


def test_moments_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, EPISODES)
    with (tmp_path / "run-eval.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("minutes", "decisions", "protocol", "seed", "episodes", "clear_rate"))
        rows.writerows([(5, 50, "noop", 20_000, 100, 0.89), (9, 90, "noop", 20_000, 100, 0.9)])
        rows.writerow((9, 90, "noop", 30_000, 100, 0.5))
    result = results.read("run", tmp_path)
    assert results.first_clear(result) == (2.0, 2_000)
    assert results.half_clear(result) == (22.0, 3_019)  # the twentieth of them
    assert results.solved(result) == (9, 90)
    assert result.fresh("noop")["clear_rate"] == "0.5"


def test_where_all_lanes_explore_alike_all_count(tmp_path: Path) -> None:
    write_run(tmp_path, [(minutes, decisions, 0.05, cleared) for minutes, decisions, _, cleared in EPISODES])
    (tmp_path / "run-eval.csv").write_text("")
    assert len(results.read("run", tmp_path).low.minutes) == len(EPISODES)


def test_a_trial_too_slow_for_the_early_window_says_so(tmp_path: Path) -> None:
    (tmp_path / "run-eval.csv").write_text("")
    for decisions, early in ((190_000, "not reached"), (210_000, "1.00")):
        write_run(tmp_path, [(15.0, decisions, 0.001, 1)])
        row = results.comparison([results.read("run", tmp_path)], "sweep").splitlines()[-1]
        assert row.split("|")[5].strip() == early


def test_the_documents_are_up_to_date() -> None:
    document = results.DOCUMENT.read_text()
    assert results.tables(document, results.read_all()) == document
    for path in results.CARDS:
        assert results.card(path) == path.read_text()


def test_a_run_starts_from_the_best_checkpoint_of_another() -> None:
    run = next(run for run in learning.QUEUE if run.init_from == "headline-1")
    best = results.read("headline-1").fresh("noop")["checkpoint"]
    command = learning.command(run, Path("there"))
    assert command[command.index("--init-from") + 1] == f"build/learning/headline-1/{best}"
