"""A learner of two ranks, real processes under torchrun, between shards that the test plays or real ones."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from apex_zmq.agent.importance import Draw, ImportanceWeights
from apex_zmq.agent.trainer import Trainer
from apex_zmq.cli.launch import free_ports
from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import EnvSpec
from apex_zmq.errors import ConfigError
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles.learner.loop import Learner
from apex_zmq.rundir.checkpoint import load
from apex_zmq.types import Batch, Float32s, FrameSpec, PriorityUpdate, Sample
from apex_zmq.wire.checksums import window_crcs
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import decode_priorities, encode_batch
from apex_zmq.wire.messages import Hello, Status, decode_hello, decode_relayed_status

from ..conftest import ROOT, Program, StartProgram
from ..transitions import make_transitions

PATIENCE_S = 60.0
ROWS, N_STEP, RANKS = 8, 3, 2
FRAME = FrameSpec((4,), "float32", 1)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}")
# The real program; each rank leaves its parameters behind.
PROGRAM = """
import sys
import numpy as np
from apex_zmq.cli import main as cli
from apex_zmq.roles.learner.loop import Learner

run = Learner.run
def run_and_keep(learner, stop):
    run(learner, stop)
    np.savez(f"rank-{learner._ranks.rank}.npz", **learner._trainer.parameters())
Learner.run = run_and_keep
sys.exit(cli.learner(sys.argv[1:]))
"""


class Shard:
    """What the ranks meet: one shard, played by the test, and their relayed statuses."""

    def __init__(self, directory: Path) -> None:
        self.addresses: dict[str, Any] = {
            "addresses.priorities": [f"ipc://{directory}/priorities"],
            "addresses.batches": [f"ipc://{directory}/batches-{rank}" for rank in range(RANKS)],
            "addresses.parameters": f"ipc://{directory}/parameters",
            "addresses.status": f"ipc://{directory}/status",
        }
        links = Links(loading.replace(Config(), self.addresses))
        self._priorities: Inbox[PriorityUpdate | Hello] = links.bind(
            "priorities", {Kind.PRIORITIES: decode_priorities, Kind.HELLO: decode_hello}
        )
        self._batches = [links.connect("batches", rank) for rank in range(RANKS)]
        self._statuses: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
        self._number = 0

    def meet(self) -> None:
        """Wait until both ranks have said hello in one incarnation."""
        incarnations: dict[int, int] = {}
        while len(incarnations) < RANKS:
            hello = self._priorities.receive(PATIENCE_S)
            assert isinstance(hello, Hello)
            incarnations[hello.rank] = hello.learner_incarnation
        (self._learner_incarnation,) = set(incarnations.values())

    def deal(self, samples: list[Sample]) -> list[PriorityUpdate]:
        """A batch to each rank, the last one first; their answers by rank."""
        for rank, sample in reversed(list(enumerate(samples))):
            wait([], [self._batches[rank]], PATIENCE_S)
            batch = Batch(
                self._learner_incarnation, rank, shard=0, shard_incarnation=1, number=self._number, sample=sample
            )
            assert self._batches[rank].send(encode_batch(batch))
        self._number += 1
        answers: dict[int, PriorityUpdate] = {}
        while len(answers) < RANKS:
            answer = self._priorities.receive(PATIENCE_S)
            assert answer is not None
            if isinstance(answer, PriorityUpdate):
                assert answer.acknowledged == self._number - 1
                answers[answer.rank] = answer
        return [answers[rank] for rank in range(RANKS)]

    def await_metrics(self, *names: str) -> dict[str, float]:
        """The learner's own numbers, once all of these are there and not 0."""
        while True:
            status = self._statuses.receive(PATIENCE_S)
            assert status is not None
            if status.role == "learner" and all(status.metrics.get(name) for name in names):
                return status.metrics

    def close(self) -> None:
        sockets: list[Any] = [self._priorities, self._statuses, *self._batches]
        for socket in sockets:
            socket.close()


@pytest.fixture
def shard(directory: Path) -> Iterator[Shard]:
    shard = Shard(directory)
    yield shard
    shard.close()


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Ends what is left of them."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.end()


def made_up(seed: int, corrupted: tuple[int, ...] = (), rewards: dict[int, float] | None = None) -> Sample:
    """Rows that no environment has seen. corrupted: whose checksums are not theirs."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(ROWS, 1 + N_STEP, 4)).astype("<f4")
    frame_crcs = np.array([zlib.crc32(frame.tobytes()) for frame in frames.reshape(-1, 4)], np.uint32)
    crcs = window_crcs(frame_crcs, np.arange(ROWS) * (1 + N_STEP), np.full(ROWS, N_STEP, np.uint8), 1)
    crcs[list(corrupted)] += 1
    reward = rng.normal(size=ROWS).astype(np.float32)
    for row, value in (rewards or {}).items():
        reward[row] = value
    return Sample(
        num_transitions=100,
        mass=90.0,
        frame=FRAME,
        keys=np.arange(ROWS * seed, ROWS * (seed + 1), dtype=np.uint64),
        priority=rng.gamma(1.0, 1.0, ROWS) + 0.1,
        transitions=make_transitions(
            ROWS, action=rng.integers(0, 2, ROWS), reward=reward, discount=0.9, steps=N_STEP, window_crc=crcs
        ),
        frame_sizes=np.full((ROWS, 1 + N_STEP), FRAME.nbytes, np.uint32),
        frames=frames.tobytes(),
    )


def joined(samples: list[Sample]) -> tuple[Float32s, Sample]:
    """Windows and columns of all rows in one batch."""
    columns = ("keys", "priority", "transitions", "frame_sizes")
    sample = dataclasses.replace(
        samples[0], **{name: np.concatenate([getattr(each, name) for each in samples]) for name in columns}
    )
    windows = [np.frombuffer(bytes(each.frames), "<f4").reshape(ROWS, 1 + N_STEP, 4) for each in samples]
    return np.concatenate(windows), sample


def flat(tensors: Mapping[str, Any], ending: str = "") -> Float32s:
    """The values of all tensors of such a name, in the order of the names."""
    return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors) if name.endswith(ending)])


def test_two_ranks_step_like_one_rank_on_the_joined_batch(
    shard: Shard, programs: list[Program], tmp_path: Path
) -> None:
    settings = {
        "env.id": "CartPole-v1",
        "env.frame_stack": 1,
        "agent.network": "mlp",
        "agent.n_step": N_STEP,
        "learner.device": "cpu",
        "learner.batch_size": ROWS,
        "learner.loss": "l2",
        "learner.optimizer_eps": 1.0,  # or Adam's step would not depend on the gradient's size
        "learner.learning_rate": 0.1,
        "learner.max_grad_norm": 0.5,
        "learner.target_period": 2,
        "learner.save_every": 1,
        "run.max_updates": 5,
        "telemetry.log_interval_s": 0.05,
    }
    (tmp_path / "config.yaml").write_text(loading.to_yaml(loading.replace(Config(), settings | shard.addresses)))
    (tmp_path / "learner.py").write_text(PROGRAM)
    learner = Program.of([*TORCHRUN, "learner.py", "--config", "config.yaml", "--run-dir", "run"], tmp_path)
    programs.append(learner)

    one = Trainer(loading.replace(Config(), settings), EnvSpec(FRAME, 2))
    importance = ImportanceWeights()

    def weigh(sample: Sample) -> Float32s:
        draw = Draw(0, 1, sample.mass, sample.num_transitions, sample.priority.min())
        return importance.weigh([draw], 0, sample.priority, one.beta, 0.0)

    def expected(samples: list[Sample], broken: tuple[int, ...] = ()) -> Float32s:
        """|TD| of the joined batch, once one rank has taken its step."""
        windows, sample = joined(samples)
        weights = weigh(sample)
        weights[list(broken)] = 0.0
        td_error = one.step(windows, sample, weights).td_error
        assert td_error is not None
        td_error[list(broken)] = np.nan
        return td_error

    def dealt(samples: list[Sample]) -> Float32s:
        """|TD| of the rows of all ranks, NaN where retired."""
        return np.concatenate(
            [np.where(answer.retired, np.float32(np.nan), answer.td_error) for answer in shard.deal(samples)]
        )

    shard.meet()
    # A row of the second rank is not what its actor sent. The gradient is that of all the others, clipped as one.
    samples = [made_up(1), made_up(2, corrupted=(3,))]
    np.testing.assert_allclose(dealt(samples), expected(samples, broken=(ROWS + 3,)), rtol=1e-5)
    shard.await_metrics("train/updates", "train/corrupted_windows")
    saved = load(tmp_path / "run" / "step-000000001.safetensors")
    gradient, whole = (flat(state, ".exp_avg") for state in (saved.tensors["optimizer"], one.state()["optimizer"]))
    np.testing.assert_allclose(np.linalg.norm(10 * whole), 0.5, rtol=1e-5)  # Adam keeps a tenth of the first one
    np.testing.assert_allclose(gradient, whole, rtol=1e-5, atol=1e-8)

    # A step that is impossible for one rank is taken by none, and only the row to blame is retired.
    samples = [made_up(3), made_up(4, rewards={5: 3e38})]
    assert [answer.keys.tolist() for answer in shard.deal(samples)] == [[], [4 * ROWS + 5]]
    weigh(joined(samples)[1])

    for seed in (10, 20, 30):
        samples = [made_up(seed), made_up(seed + 1)]
        np.testing.assert_allclose(dealt(samples), expected(samples), rtol=1e-4, atol=1e-6)
    metrics = shard.await_metrics("train/bad_steps", "wait/rank_0", "wait/rank_1")
    assert metrics["train/bad_steps"] == 1
    same = [made_up(40), made_up(40)]
    left, right = shard.deal(same)
    np.testing.assert_array_equal(left.td_error, right.td_error)
    expected(same)

    assert learner.wait() == 0, learner.output  # all leave when the budget is spent
    assert "budget spent: 5 of 5 updates" in learner.output
    assert learner.output.count("saved run/step-000000005") == 2  # when it was due and at the end, by one rank
    ranks = [dict(np.load(tmp_path / f"rank-{rank}.npz")) for rank in range(RANKS)]
    final = load(tmp_path / "run").tensors["online"]
    for name, array in ranks[0].items():
        np.testing.assert_array_equal(array, ranks[1][name])
        np.testing.assert_array_equal(array, final[name])
    np.testing.assert_allclose(flat(ranks[0]), flat(one.parameters()), rtol=1e-4, atol=1e-6)


def test_number_of_batch_addresses_must_match_the_ranks() -> None:
    config = loading.replace(Config(), {"env.id": "CartPole-v1", "addresses.batches": ["ipc:///a", "ipc:///b"]})
    with pytest.raises(ConfigError, match=r"addresses\.batches lists 2 addresses for 1 ranks"):
        Learner(config, Path("run"))


@pytest.mark.long
def test_learner_of_two_ranks_resumes_after_a_rank_is_killed(
    start: StartProgram, programs: list[Program], tmp_path: Path
) -> None:
    ports = iter(free_ports(6))
    addresses = {
        name: f"tcp://127.0.0.1:{next(ports)}" for name in ("experience", "priorities", "parameters", "status")
    }
    addresses["batches"] = ",".join(f"tcp://127.0.0.1:{next(ports)}" for _ in range(RANKS))
    common = ["--config", str(ROOT / "configs" / "cartpole.yaml"), "--set", "replay.min_size=200"]
    common += itertools.chain.from_iterable((f"--{name}", address) for name, address in addresses.items())
    start("replay", *common)
    start("actor", *common)

    def learn(updates: int) -> Program:
        run = ["--run-dir", "run", "--resume", "auto", "--set", f"run.max_updates={updates}"]
        program = [str(ROOT / "bin" / "apex-learner"), *common, *run, "--set", "learner.save_every=20"]
        programs.append(Program.of([*TORCHRUN, "--max-restarts=1", "--no-python", *program], tmp_path))
        return programs[-1]

    first = learn(60)
    assert first.wait() == 0, first.output
    assert load(tmp_path / "run").counters["updates"] == 60
    assert first.output.count("saved run/step-000000060") == 2

    second = learn(10**9)
    second.wait_for("saved run/step-000000080")
    processes = psutil.Process(second.process.pid).children(recursive=True)
    ranks = {process.environ().get("RANK"): process for process in processes}
    ranks["1"].kill()
    second.wait_for("another rank of the learner has ended")
    resumed = re.search(r"\d+$", second.wait_for(r"learner-1 .*resuming run at update (?!60$)\d+"))
    assert resumed
    second.wait_for(rf"saved run/step-{int(resumed[0]) + 40:09d}")
    second.process.terminate()
    second.wait()
    final = int(load(tmp_path / "run").counters["updates"])
    assert final >= int(resumed[0]) + 40
    assert second.output.rstrip().count(f"saved run/step-{final:09d}") >= 1
