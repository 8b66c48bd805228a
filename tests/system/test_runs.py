"""Whole runs of the real programs: real environments, sockets, processes and files."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apex_zmq.cli.launch import free_ports, local_addresses
from apex_zmq.config import loading, settings
from apex_zmq.net.sockets import Inbox
from apex_zmq.replay.disk import keeper, snapshot
from apex_zmq.replay.disk.snapshot import Snapshot
from apex_zmq.roles.learner.loop import Learner
from apex_zmq.rundir.checkpoint import BEST, load, save
from apex_zmq.rundir.episodes import EPISODES
from apex_zmq.wire.messages import Status

from ..channels import relayed_statuses
from ..conftest import ROOT, StartProgram

CARTPOLE = str(ROOT / "configs" / "cartpole.yaml")
MARIO = str(ROOT / "configs" / "mario-cpu.yaml")

TAGS = {
    "train/loss",
    "train/q_mean",
    "train/td_error_mean",
    "train/grad_norm",
    "train/learning_rate",
    "train/beta",
    "train/updates",
    "replay/size",
    "replay/samples_per_insert",
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/low_epsilon/ep_rew_mean",
    "rollout/low_epsilon/ep_len_mean",
    "rollout/max_x",
    "rollout/clear_rate",
    "time/decisions_per_s",
    "time/inserts_per_s",
    "time/updates_per_s",
    "wait/learner",
    "wait/actors",
    "actors/parameter_age_updates",
}


def events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def test_mario_run_ends_with_curves_and_a_playable_checkpoint(start: StartProgram, tmp_path: Path) -> None:
    arguments = ("--num-actors", "1", "--episodes", "40", "--set", "replay.min_size=500", "--run-dir", "run")
    train = start("train", "--config", MARIO, *arguments)
    assert train.wait() == 0, train.output

    curves = events(tmp_path / "run")
    assert set(curves.Tags()["scalars"]) >= TAGS
    assert "config/text_summary" in curves.Tags()["tensors"]
    assert "rollout/end_x/1-1" in curves.Tags()["histograms"]
    assert curves.Scalars("train/updates")[-1].value >= 20
    assert curves.Scalars("rollout/episodes")[-1].value >= 40
    assert curves.Scalars("rollout/max_x")[-1].value > 300  # Mario starts at 40 and has walked
    assert curves.Scalars("actors/count")[-1].value == 1

    with (tmp_path / "run" / EPISODES).open() as file:
        episodes = list(csv.DictReader(file))
    assert len(episodes) == curves.Scalars("rollout/episodes")[-1].value
    assert max(float(episode["return"]) for episode in episodes) > 26  # as far as 300 pixels
    assert {episode["stage"] for episode in episodes} == {"1-1"}
    assert max(int(episode["max_x"]) for episode in episodes) == curves.Scalars("rollout/best_x")[-1].value
    assert {float(episode["epsilon"]) for episode in episodes} >= {0.4, 0.16}
    assert (
        sum(int(episode["length"]) for episode in episodes) <= int(episodes[-1]["decisions"]) + 8
    )  # a step of 8 lanes

    checkpoint = load(tmp_path / "run")
    assert checkpoint.counters["updates"] >= 20
    assert checkpoint.counters["episodes"] >= 40

    options = ("--episodes", "2", "--protocol", "greedy", "--seed", "7", "--json")
    evaluation = start("eval", "--checkpoint", "run", *options)
    assert evaluation.wait() == 0, evaluation.output
    figures = json.loads(evaluation.lines[-1])
    assert (figures["episodes"], figures["protocol"], figures["seed"]) == (2, "greedy", 7)
    assert 0 <= figures["clear_rate"] <= 1
    assert figures["mean_stages_cleared"] == figures["clear_rate"]  # an episode is one stage
    assert figures["best_x"] == figures["mean_x"] > 40  # the same play twice


def addresses(ports: Iterator[int], shards: int = 1) -> dict[str, str]:
    """Flags of a run over loopback TCP."""
    flags = {
        name: ",".join(f"tcp://127.0.0.1:{next(ports)}" for _ in range(shards))
        for name in ("--experience", "--priorities")
    }
    return flags | {name: f"tcp://127.0.0.1:{next(ports)}" for name in ("--batches", "--parameters", "--status")}


@pytest.mark.parametrize(
    "orders",
    [
        (("replay", "learner", "actor"), ("learner", "actor", "replay"), ("actor", "replay", "learner")),
        pytest.param(
            (("replay", "actor", "learner"), ("learner", "replay", "actor"), ("actor", "learner", "replay")),
            marks=pytest.mark.long,
        ),
    ],
)
def test_three_programs_train_in_any_order(orders: tuple[tuple[str, ...], ...], start: StartProgram) -> None:
    def train_in_order(order: tuple[str, ...], flags: dict[str, str]) -> None:
        common = [
            "--config",
            CARTPOLE,
            *itertools.chain.from_iterable(flags.items()),
            "--set",
            "run.max_updates=40",
            "--set",
            "replay.min_size=200",
        ]
        started = {}
        for role in order:
            extra = ["--run-dir", "-".join(order)] if role == "learner" else []
            started[role] = start(role, *common, *extra)
            started[role].wait_for("INFO")  # up before the next one starts
        assert started["learner"].wait() == 0, started["learner"].output
        for role in ("actor", "replay"):
            started[role].process.terminate()
            assert started[role].wait() == 0, started[role].output
        assert "refused" not in "".join(program.output for program in started.values())

    ports = iter(free_ports(5 * len(orders)))
    with ThreadPoolExecutor(max_workers=3) as pool:
        for done in [pool.submit(train_in_order, order, addresses(ports)) for order in orders]:
            done.result()


def test_two_shards_share_experience_and_batches(start: StartProgram) -> None:
    flags = addresses(iter(free_ports(7)), shards=2)
    common = ["--config", CARTPOLE, *itertools.chain.from_iterable(flags.items()), "--set", "replay.shards=2"]
    common += ["--set", "replay.min_size=400"]
    inbox: Inbox[Status] = relayed_statuses(flags["--parameters"])
    learner = start("learner", *common, "--run-dir", "run")
    for shard in "01":
        start("replay", *common, "--shard", shard)
    start("actor", *common)
    learner.wait_for("playing|run ")
    samples = {"replay-0": 0.0, "replay-1": 0.0}
    while min(samples.values()) < 640:
        status = inbox.receive(timeout_s=60)
        assert status is not None, learner.output
        if status.role == "replay":
            samples[status.name] = status.metrics["samples"]
            assert status.metrics["refused_messages"] == 0
            assert status.metrics["segments_refused"] == 0
    inbox.close()


def replay_snapshot(run: Path) -> Snapshot:
    return snapshot.decode((run / "replay-0" / keeper.SNAPSHOT).read_bytes())


def test_interrupted_run_saves_and_resumes_where_it_was(
    start: StartProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEX_PARAMETERS", "tcp://127.0.0.1:9")  # of another run, over several machines
    common = ("--config", CARTPOLE, "--run-dir", "run", "--set", "replay.min_size=200")
    first = start("train", *common, "--tcp", "--resume", "auto")  # where there is no run it begins one
    first.wait_for(r"waiting for parameters from tcp://127\.0\.0\.1:\d\d")
    first.wait_for(r"updates [1-9]\d")
    first.interrupt()
    assert first.wait() == 0, first.output
    saved = load(tmp_path / "run")
    assert saved.counters["updates"] > 0
    stored = replay_snapshot(tmp_path / "run")
    assert len(stored.store.priority) >= 200

    target = int(saved.counters["updates"]) + 40
    second = start("train", *common, "--resume", "auto", "--max-updates", str(target))
    assert second.wait() == 0, second.output
    assert "waiting for parameters from ipc:///" in second.output
    assert re.search(
        rf"recovered {len(stored.store.priority)} transitions from \S*run/replay-0 .*; dropped 0", second.output
    )
    later, config = replay_snapshot(tmp_path / "run"), loading.load(CARTPOLE, ["replay.min_size=200"])
    assert stored.inserts < later.inserts == later.store.next_key
    assert 40 * config.learner.batch_size <= later.samples - stored.samples
    per_insert, tolerance = config.replay.samples_per_insert, settings.tolerance(config)
    assert per_insert is not None
    for account in (stored, later):  # one account over both parts
        assert abs(account.samples - per_insert * (account.inserts - 200)) <= tolerance
    resumed = load(tmp_path / "run")
    assert resumed.counters["updates"] == target
    # The actor may not have said anything yet when the updates are done; what was counted before is not lost.
    assert resumed.counters["decisions"] >= saved.counters["decisions"]
    assert resumed.run_id == saved.run_id
    assert resumed.learner_incarnation > saved.learner_incarnation
    updates = [event.value for event in events(tmp_path / "run").Scalars("train/updates")]
    assert updates == sorted(updates)  # the curves join


def test_init_from_starts_with_parameters_of_another_run(start: StartProgram, tmp_path: Path) -> None:
    changes = {"run.seed": 5, "run.max_minutes": 1e-9} | local_addresses(1, tmp_path)
    Learner(loading.replace(loading.load(CARTPOLE), changes), tmp_path / "first").run(threading.Event())
    first = load(tmp_path / "first")
    wanted = {name: tensor + 1 for name, tensor in first.tensors["online"].items()}  # an average, which is what plays
    (tmp_path / "model").mkdir()
    save(tmp_path / "model" / BEST, dataclasses.replace(first, tensors=first.tensors | {"average": wanted}))
    quiet = ("--set", "run.dir=second", "--set", "telemetry.log_level=warning")
    train = start("train", "--config", CARTPOLE, "--init-from", "model", *quiet, "--max-minutes", "1e-9")
    assert train.wait() == 0, train.output
    assert "INFO" not in train.output
    found = load(tmp_path / "second" / "step-000000000.safetensors").tensors["online"]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.long
def test_an_atari_game_is_trained_on_by_all_roles(start: StartProgram, tmp_path: Path) -> None:
    game = ("--set", "env.id=ALE/Pong-v5", "--set", "env.clip_reward=true")
    bounds = ("--num-actors", "2", "--batch-size", "32", "--max-updates", "20", "--set", "replay.min_size=500")
    train = start("train", "--config", str(ROOT / "configs" / "apex-paper.yaml"), *game, *bounds, "--run-dir", "run")
    assert train.wait() == 0, train.output
    checkpoint = load(tmp_path / "run")
    assert checkpoint.config["env"]["id"] == "ALE/Pong-v5"
    assert checkpoint.counters["updates"] == 20
    assert checkpoint.counters["decisions"] >= 500

    evaluation = start("eval", "--checkpoint", "run", "--episodes", "1", "--json")
    assert evaluation.wait() == 0, evaluation.output
    figures = json.loads(evaluation.lines[-1])
    assert -21 <= figures["mean_return"] <= 21  # a whole game of Pong ends at 21 points
    assert figures["mean_length"] > 500


# The sign of a number, twenty times an episode: no exploration finds it and none misses it, so no run needs luck.
SIGNS = """
import gymnasium
import numpy as np


class Signs(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 20
        return self.draw(), {}

    def draw(self):
        self.positive = bool(self.np_random.integers(2))
        return np.array([0.5 if self.positive else -0.5], np.float32)

    def step(self, action):
        right = action == self.positive
        self.left -= 1
        return self.draw(), float(right), self.left == 0, False, {}


gymnasium.register("Signs-v0", Signs)
"""


def test_a_game_is_learned_over_the_real_processes(
    start: StartProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Low-epsilon lanes earn 19 of 20 where guessing earns 10."""
    (tmp_path / "signs.py").write_text(SIGNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": ""}.items():
        monkeypatch.setenv(name, value)  # left by a cluster's shell; the launcher drops them
    settings = {
        "env.id": "signs:Signs-v0",
        "env.frame_stack": 1,
        "agent.network": "mlp",
        "agent.n_step": 1,
        "agent.gamma": 0.5,
        "replay.capacity": 10_000,
        "replay.arena_bytes": 2_000_000,
        "replay.min_size": 200,
        "replay.samples_per_insert": "null",  # a ratio would train on what the links held from before the first update
        "learner.batch_size": 32,
        "learner.learning_rate": 0.002,
        "learner.target_period": 50,
        "learner.sync_every": 10,
        "telemetry.log_interval_s": 1,
    }
    changes = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    # A busy machine may need many times the 1,000 updates that an idle one needs.
    train = start("train", "--num-actors", "1", "--max-updates", "100000", "--run-dir", "run", *changes)
    train.wait_for(r"low-eps return (19\.[1-9]|20\.0)")
    train.interrupt()
    assert train.wait() == 0, train.output


@pytest.mark.long
@pytest.mark.timeout(900)  # a hang, not a bar: six processes on two cores
def test_cartpole_is_learned_over_the_real_processes(start: StartProgram, tmp_path: Path) -> None:
    """Mean return of 400 over the last 20 low-epsilon episodes within 30,000 updates, on two seeds at once."""
    runs = {
        seed: start(
            "train", "--config", CARTPOLE, "--seed", str(seed), "--max-updates", "30000", "--run-dir", f"s{seed}"
        )
        for seed in (1, 2)
    }
    for seed, run in runs.items():
        run.wait_for(r"low-eps return ([4-9]\d\d)")
        run.interrupt()
        assert run.wait() == 0, run.output
        curves = events(tmp_path / f"s{seed}")
        assert max(event.value for event in curves.Scalars("rollout/low_epsilon/ep_rew_mean")) >= 400
        assert curves.Scalars("train/updates")[-1].value <= 30_000
