from __future__ import annotations

import math
import threading

import pytest
from msgspec.structs import replace

from apex_zmq.watch.stats import (
    EPISODE_WINDOW,
    EPSILON_WINDOW,
    LOW_EPSILON,
    LOW_EPSILON_WINDOW,
    SILENT_S,
    Meter,
    RunStats,
    progress_line,
)
from apex_zmq.wire.messages import Episode, StageArchive, Status


def status(
    name: str = "actor-0",
    incarnation: int = 1,
    episodes: tuple[Episode, ...] = (),
    uptime: float = 0.0,
    **metrics: float,
) -> Status:
    role = name.partition("-")[0]
    assert role in ("actor", "replay", "learner")
    return Status(
        role=role,  # type: ignore[arg-type]
        name=name,
        host="here",
        pid=1,
        incarnation=incarnation,
        start_time=-uptime,
        time=0.0,
        progress_time=0.0,
        metrics=metrics,
        episodes=episodes,
    )


def episode(
    value: float,
    epsilon: float = 0.5,
    length: int = 10,
    max_x: float | None = None,
    cleared: bool = False,
    stage: str = "1-1",
    stages_cleared: int = 0,
) -> Episode:
    """An episode. max_x: of Mario; None: an environment without info."""
    if max_x is None:
        return Episode(value, length, epsilon)
    info = {"max_x": max_x, "cleared": float(cleared), "stages_cleared": float(stages_cleared)}
    return Episode(value, length, epsilon, stage, info)


def started(now: float = 0.0) -> RunStats:
    """Statistics whose next summary starts at `now`."""
    stats = RunStats()
    stats.summary(now, 0)
    return stats


def test_counts_continue_over_restarts() -> None:
    stats = RunStats(decisions=1000)
    stats.add(status("actor-0", 1, decisions=10), 0)
    stats.add(status("actor-0", 1, decisions=25), 1)
    stats.add(status("actor-1", 8, decisions=100), 1)
    stats.add(status("actor-0", 2, decisions=5), 2)  # restarted, counting from 0
    stats.add(status("actor-0", 2, decisions=7), 3)
    assert stats.decisions == 1000 + 25 + 100 + 7


def test_numbers_are_clipped_to_a_finite_range() -> None:
    stats = started()
    games = tuple(episode(1e308, epsilon=0.0) for _ in range(LOW_EPSILON_WINDOW))
    for incarnation in range(20):
        stats.add(status("replay-0", incarnation, size=1e308, bytes=1e308), 0)
        stats.add(status("actor-0", incarnation, games, rss_bytes=1e308, parameter_age_s=1e308, decisions=1e308), 0)
    assert stats.low_epsilon_return is not None
    assert math.isfinite(stats.low_epsilon_return)
    for tag, value in stats.summary(1.0, 1).items():
        assert abs(value) < 2.0**63, tag


def test_restarts_and_faults_are_summed_over_processes() -> None:
    stats = RunStats()
    stats.add(status("replay-0", 1, segments_lost=3, segments_refused=1), 0)
    stats.add(status("replay-1", 1, segments_lost=2), 0)
    stats.add(status("replay-0", 1, segments_lost=1, segments_refused=1), 1)  # a gap was filled
    stats.add(status("replay-0", 2, segments_duplicate=4), 2)
    stats.add(status("actor-0", 1, dropped_segments=5), 2)
    numbers = stats.summary(2, 0)
    assert numbers["replay/segments_lost"] == 3
    assert numbers["replay/segments_refused"] == 1
    assert numbers["replay/segments_duplicate"] == 4
    assert numbers["actors/dropped_segments"] == 5
    assert numbers["time/restarts"] == 1


def test_a_new_learner_excludes_earlier_counts_of_older_processes() -> None:
    stats = RunStats(since=100.0, decisions=1000)
    stats.add(status("actor-0", 1, uptime=3600.0, decisions=700), 101)
    stats.add(status("actor-1", 1, uptime=0.5, decisions=4), 101)
    stats.add(status("actor-2", 1, uptime=5.0, decisions=20), 101)  # slightly older than the learner: started with it
    assert stats.decisions == 1024
    stats.add(status("actor-0", 1, uptime=3601.0, decisions=730), 102)
    assert stats.decisions == 1054


def test_rates_are_measured_since_the_last_summary() -> None:
    stats = started(100)
    stats.add(status("actor-0", 1, decisions=40), 101)
    stats.add(status("actor-1", 1, decisions=60), 102)
    stats.add(status("replay-0", 1, inserts=30, samples=120), 103)
    stats.add(status("learner", 1, updates=8, waited_s=1.0), 104)
    numbers = stats.summary(104, update=508)
    assert numbers["time/decisions_per_s"] == 25
    assert numbers["time/inserts_per_s"] == 7.5
    assert numbers["time/updates_per_s"] == 2
    assert numbers["wait/learner"] == 0.25
    assert numbers["train/updates"] == 508

    stats.add(status("actor-0", 1, decisions=50), 105)
    numbers = stats.summary(106, update=508)
    assert numbers["time/decisions_per_s"] == 5
    assert numbers["time/updates_per_s"] == 0
    assert stats.summary(107, update=508)["time/decisions_per_s"] == 0


def test_shards_are_summed_and_samples_per_insert_covers_the_whole_run() -> None:
    stats = started(100)
    stats.add(status("replay-0", 1, size=10, bytes=1000, inserts=10, samples=30, insert_blocked_s=1.0), 101)
    stats.add(status("replay-1", 1, size=20, bytes=2000, inserts=30, samples=130, sample_blocked_s=2.0), 101)
    numbers = stats.summary(102, update=0)
    assert (numbers["replay/size"], numbers["replay/bytes"]) == (30, 3000)
    assert numbers["replay/samples_per_insert"] == 4
    assert numbers["wait/replay_insert"] == 0.25  # one of two shards, blocked half the time
    assert numbers["wait/replay_sample"] == 0.5
    # A restarted shard is empty; earlier inserts still count.
    stats.add(status("replay-1", 2, size=1, bytes=100, inserts=10, samples=0), 103)
    numbers = stats.summary(104, update=0)
    assert (numbers["replay/size"], numbers["replay/bytes"]) == (11, 1100)
    assert numbers["replay/samples_per_insert"] == 160 / 50


def test_waits_and_parameter_ages_of_actors_are_averaged() -> None:
    stats = started(100)
    stats.add(status("actor-0", 1, blocked_s=1.0, parameter_update=90, parameter_age_s=2), 101)
    stats.add(status("actor-1", 1, blocked_s=0.0, parameter_update=70, parameter_age_s=4), 101)
    numbers = stats.summary(102, update=100)
    assert numbers["actors/count"] == 2
    assert numbers["wait/actors"] == 0.25
    assert numbers["actors/parameter_age_updates"] == 20
    assert numbers["actors/parameter_age_s"] == 3


def test_a_process_without_a_recent_status_is_not_live_until_its_next_status() -> None:
    stats = RunStats()
    stats.add(status("actor-0", 1, decisions=5), 0)
    stats.add(status("actor-1", 1, decisions=5), 6)
    stats.add(status("replay-0", 1, decisions=5), 6)
    assert [each.name for each in stats.live("actor", SILENT_S)] == ["actor-0", "actor-1"]
    assert [each.name for each in stats.live("actor", SILENT_S + 1)] == ["actor-1"]
    assert stats.live("learner", SILENT_S) == []
    stats.add(status("actor-0", 1, decisions=9), 30)
    assert [each.metrics for each in stats.live("actor", 31)] == [{"decisions": 9}]
    assert stats.decisions == 9 + 5 + 5


def test_a_restarted_process_counts_once() -> None:
    stats = RunStats()
    stats.add(status("actor-0", 1), 0)
    stats.add(status("actor-0", 2), 1)
    assert [each.incarnation for each in stats.live("actor", 2)] == [2]


def test_a_summary_omits_numbers_without_data() -> None:
    numbers = started(100).summary(110, update=3)
    assert numbers["actors/count"] == numbers["rollout/episodes"] == numbers["replay/size"] == 0
    absent = ("wait/actors", "wait/replay_insert", "rollout/ep_rew_mean", "replay/samples_per_insert")
    assert not any(name in numbers for name in absent)


def test_episodes_are_counted_and_averaged_over_the_window() -> None:
    stats = RunStats(episodes=7, info={"clears": 2, "best_x": 500})
    many = EPISODE_WINDOW + 20
    for value in range(many):
        stats.add(status(episodes=(episode(float(value), length=value),)), float(value))
    numbers = stats.summary(200, update=0)
    assert numbers["rollout/episodes"] == 7 + many
    assert numbers["rollout/ep_rew_mean"] == numbers["rollout/ep_len_mean"] == many - (EPISODE_WINDOW + 1) / 2
    assert (numbers["rollout/clears"], numbers["rollout/best_x"]) == (2, 500)
    assert "rollout/max_x_mean" not in numbers  # not Mario
    assert not any(name.startswith("rollout/low_epsilon") for name in numbers)


def test_statistics_of_mario() -> None:
    stats = RunStats()
    episodes = (
        episode(1, max_x=100, stages_cleared=2),
        episode(2, max_x=300, cleared=True, stages_cleared=1),
        episode(3, max_x=200),
    )
    stats.add(status(episodes=episodes[:2]), 0)
    stats.add(status("actor-1", episodes=episodes[2:]), 0)
    numbers = stats.summary(10, update=0)
    assert (numbers["rollout/episodes"], numbers["rollout/clears"], numbers["rollout/best_x"]) == (3, 1, 300)
    assert (numbers["rollout/max_x_mean"], numbers["rollout/max_x"]) == (200, 300)
    assert numbers["rollout/clear_rate"] == pytest.approx(1 / 3)
    assert numbers["rollout/stages_cleared_mean"] == pytest.approx(1)


def test_episodes_of_low_epsilon_have_their_own_window() -> None:
    stats = RunStats()
    for value in range(LOW_EPSILON_WINDOW + 5):
        assert (stats.low_epsilon_return is None) == (value < LOW_EPSILON_WINDOW)
        low, high = episode(value, epsilon=LOW_EPSILON), episode(-1000, epsilon=LOW_EPSILON * 1.01)
        stats.add(status(episodes=(low, high)), 0)
    assert stats.low_epsilon_return == 5 + (LOW_EPSILON_WINDOW - 1) / 2
    numbers = stats.summary(10, update=0)
    assert numbers["rollout/low_epsilon/ep_rew_mean"] == stats.low_epsilon_return
    assert numbers["rollout/ep_rew_mean"] < -400


def test_returns_by_epsilon_are_averaged_over_the_window_of_each_bucket() -> None:
    stats = RunStats()
    for value in range(EPSILON_WINDOW + 10):
        stats.add(status(episodes=(episode(value, epsilon=0.01),)), 0)
    stats.add(status(episodes=(episode(7, epsilon=0.0), episode(-1, epsilon=0.011), episode(-5, epsilon=1.0))), 0)
    numbers = stats.summary(10, update=0)
    prefix = "rollout/ep_rew_mean_by_epsilon/to_"
    assert {tag.removeprefix(prefix): value for tag, value in numbers.items() if tag.startswith(prefix)} == {
        "0.001": 7,
        "0.01": 10 + (EPSILON_WINDOW - 1) / 2,
        "0.1": -1,
        "1": -5,
    }


def test_episodes_and_clear_rates_are_grouped_by_epsilon() -> None:
    stats = RunStats()
    stats.add(status(episodes=(episode(1, epsilon=0.5),)), 0)
    assert not any("clear_rate_by_epsilon" in tag for tag in stats.summary(1, update=0))  # not Mario
    for turn in range(EPSILON_WINDOW + 5):
        stats.add(status(episodes=(episode(1, epsilon=0.001, max_x=100, cleared=turn >= EPSILON_WINDOW),)), 2)
    numbers = stats.summary(3, update=0)
    assert numbers["rollout/episodes_by_epsilon/to_0.001"] == EPSILON_WINDOW + 5
    assert numbers["rollout/episodes_by_epsilon/to_1"] == 1
    assert numbers["rollout/clear_rate_by_epsilon/to_0.001"] == 5 / EPSILON_WINDOW
    assert "rollout/episodes_by_epsilon/to_0.1" not in numbers


def test_returns_by_epsilon_do_not_depend_on_the_mix_of_actors() -> None:
    stats = RunStats()
    stats.add(status("actor-0", 1, tuple(episode(100.0, epsilon=0.005) for _ in range(EPISODE_WINDOW))), 0)
    before = stats.summary(1, 0)
    # Actors with a high epsilon join.
    stats.add(status("actor-1", 1, tuple(episode(10.0, epsilon=0.3) for _ in range(EPISODE_WINDOW))), 1)
    after = stats.summary(2, 0)
    assert (before["rollout/ep_rew_mean"], after["rollout/ep_rew_mean"]) == (100, 10)
    assert before["rollout/ep_rew_mean_by_epsilon/to_0.01"] == after["rollout/ep_rew_mean_by_epsilon/to_0.01"] == 100
    assert after["rollout/ep_rew_mean_by_epsilon/to_1"] == 10


def test_ends_of_unsuccessful_episodes_are_listed_by_stage() -> None:
    stats = RunStats()
    assert stats.ends() == {}
    stats.add(status(episodes=(episode(1, max_x=100), episode(1, max_x=3161, cleared=True), episode(1))), 0)
    stats.add(status(episodes=(episode(1, max_x=700), episode(1, max_x=40, stage="8-4"))), 0)
    ends = {tag: values.tolist() for tag, values in stats.ends().items()}
    assert ends == {"rollout/end_x/1-1": [100, 700], "rollout/end_x/8-4": [40]}
    for _ in range(EPISODE_WINDOW):
        stats.add(status(episodes=(episode(1, max_x=5),)), 0)
    assert set(stats.ends()["rollout/end_x/1-1"]) == {5}


def archived(name: str, incarnation: int = 1, *archive: StageArchive) -> Status:
    return replace(status(name, incarnation), archive=archive)


def test_histograms_of_restarts_are_summed_over_live_actors() -> None:
    stats = RunStats()
    assert stats.archive(0) == ()
    stats.add(archived("actor-0", 1, StageArchive("1-1", 128.0, (1, 1, 1), (0, 0, 4))), 0)
    stats.add(archived("actor-1", 1, StageArchive("1-1", 256.0, (5,), (6,))), 0)
    assert stats.archive(1) == (StageArchive("1-1", 256.0, (7, 1), (6, 4)),)
    stats.add(archived("actor-0", 1), 6)  # unchanged
    stats.add(archived("actor-1", 2), 6)  # restarted, nothing archived yet
    assert stats.archive(7) == (StageArchive("1-1", 128.0, (1, 1, 1), (0, 0, 4)),)
    stats.add(archived("actor-0", 1, StageArchive("1-2", 128.0, (2,), (0,))), 8)
    assert stats.archive(9) == (StageArchive("1-2", 128.0, (2,), (0,)),)
    assert stats.archive(8 + SILENT_S + 1) == ()


def test_widths_of_histograms_are_clipped_to_a_finite_range() -> None:
    stats = RunStats()
    stats.add(archived("actor-0", 1, StageArchive("1-1", 1e308, (1,) * 64, (1,) * 64)), 0)
    assert stats.archive(0)[0].width <= 2.0**53


def test_memory_is_summed_per_role_over_live_processes() -> None:
    stats = started(100)
    stats.add(status("actor-0", rss_bytes=1000.0), 100)
    stats.add(status("actor-1", rss_bytes=100.0), 101)
    stats.add(status("actor-2", rss_bytes=10.0), 101)
    stats.add(status("learner", rss_bytes=7.0), 101)
    numbers = stats.summary(100 + SILENT_S + 0.5, update=0)
    assert {tag: value for tag, value in numbers.items() if tag.startswith("memory/")} == {
        "memory/actor_bytes": 110,
        "memory/learner_bytes": 7,
    }


def test_a_meter_returns_means_since_the_last_call() -> None:
    meter = Meter()
    assert meter.take() == {}
    meter.add({"loss": 1.0, "norm": 5.0})
    meter.add({"loss": 3.0})
    meter.add({})
    assert meter.take() == {"loss": 2.0, "norm": 5.0}
    assert meter.take() == {}
    meter.add({"loss": 7.0})
    assert meter.take() == {"loss": 7.0}


def test_a_meter_is_thread_safe() -> None:
    meter = Meter()
    taken: list[dict[str, float]] = []

    def add() -> None:
        for _ in range(2000):
            meter.add({"one": 1.0, "two": 2.0})

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken.append(meter.take())
    taken.append(meter.take())
    assert all(means in ({}, {"one": 1.0, "two": 2.0}) for means in taken)


def test_the_progress_line_shows_the_numbers_of_the_summary() -> None:
    stats = started(100)
    low = tuple(episode(12.34, epsilon=0.001, max_x=1234, cleared=True) for _ in range(3))
    stats.add(status(decisions=5000, episodes=low), 101)
    stats.add(status("replay-0", size=777), 101)
    stats.add(status("learner", updates=35), 101)
    line = progress_line(stats.summary(110, update=4321) | {"train/loss": 0.01234})
    assert line.split("  ") == [
        "episodes 3",
        "decisions/s 500",
        "updates 4321",
        "updates/s 3.5",
        "replay 777",
        "return 12.3",
        "low-eps return 12.3",
        "best x 1234",
        "clears 3",
        "loss 0.0123",
    ]


def test_the_progress_line_omits_unknown_numbers() -> None:
    assert progress_line(started(100).summary(110, update=0)) == (
        "episodes 0  decisions/s 0  updates 0  updates/s 0.0  replay 0"
    )
