from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from apex_zmq.agent.trainer import Trainer, choose_device
from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import EnvSpec
from apex_zmq.errors import ConfigError, UserError
from apex_zmq.replay.store import Store
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.rundir.checkpoint import Checkpoint, load, save
from apex_zmq.types import Float32s, FrameSpec, Sample, Segment, Shipment
from apex_zmq.wire.frames import decode_windows

from ..transitions import make_transitions, with_columns

N_STEP, GAMMA = 3, 0.9
IMAGES = EnvSpec(FrameSpec((20, 24), "uint8", 2), 3)
VECTORS = EnvSpec(FrameSpec((4,), "float32", 1), 2)
DecodedRows = tuple[npt.NDArray[Any], Sample]
State = dict[str, dict[str, torch.Tensor]]


def make_config(spec: EnvSpec = VECTORS, **learner: Any) -> Config:
    network = "small" if spec.frame.dtype == "uint8" else "mlp"
    changes: dict[str, Any] = {"agent.network": network, "agent.n_step": N_STEP, "agent.gamma": GAMMA}
    changes |= {"learner.device": "cpu"} | {f"learner.{name}": value for name, value in learner.items()}
    return loading.replace(Config(), changes)


def random_frame(rng: np.random.Generator, spec: FrameSpec) -> npt.NDArray[Any]:
    if spec.dtype == "uint8":
        return rng.integers(0, 256, spec.shape, dtype=np.uint8)
    return rng.normal(size=spec.shape).astype(np.float32)


def act(trainer: Trainer, spec: EnvSpec, num_lanes: int, decisions: int, seed: int) -> list[Segment]:
    """Decisions over random frames, rewards and ends; values are computed where the actor role computes them."""
    rng = np.random.default_rng(seed)
    frame, lanes = spec.frame, range(num_lanes)
    builders = [SegmentBuilder(frame, N_STEP, GAMMA, length=8) for _ in lanes]
    observations = np.zeros((num_lanes, frame.stack, *frame.shape), frame.dtype)
    segments = []

    def q_values(stacks: npt.NDArray[Any]) -> Float32s:
        with torch.inference_mode():
            values: Float32s = trainer.online(torch.from_numpy(stacks)).numpy()
        return values

    def reset(lane: int) -> None:
        observations[lane] = first = random_frame(rng, frame)
        builders[lane].reset(frame.observation_of(first))

    for lane in lanes:
        reset(lane)
    q = q_values(observations)
    for _ in range(decisions):
        next_values = np.full(num_lanes, np.nan)
        for lane in lanes:
            action, following = int(rng.integers(spec.num_actions)), random_frame(rng, frame)
            end = rng.choice(["terminated", "truncated", "neither"], p=[0.15, 0.15, 0.7])
            ends = (bool(end == "terminated"), bool(end == "truncated"))
            builders[lane].step(action, float(q[lane, action]), following, float(rng.normal()), *ends)
            observations[lane] = np.concatenate([observations[lane, 1:], following[None]])
            if ends[0]:
                next_values[lane] = 0.0
            elif ends[1]:
                next_values[lane] = q_values(observations[lane : lane + 1]).max()
            if any(ends):
                reset(lane)
        q = q_values(observations)
        running = np.isnan(next_values)
        next_values[running] = q.max(axis=1)[running]
        for lane in lanes:
            builders[lane].bootstrap(float(next_values[lane]))
            while (segment := builders[lane].take()) is not None:
                segments.append(segment)
    return segments


def sampled(segments: list[Segment], spec: FrameSpec, rows: int) -> DecodedRows:
    """A batch as the learner's feeder hands it over."""
    store = Store(capacity=1000, arena_bytes=1 << 22, frame_window=spec.stack + N_STEP, alpha=0.5, epsilon=0.01, seed=0)
    for segment in segments:
        store.append(Shipment("actor", 0, 0, segment))
    sample = store.sample(rows)
    windows = np.zeros((rows, spec.stack + N_STEP, *spec.shape), spec.dtype)
    assert not decode_windows(sample.frames, sample.frame_sizes, spec, windows).any()
    return windows, sample


def made_up(rows: int, seed: int = 0, discount: float = 0.0) -> DecodedRows:
    """Rows over vectors that no environment has seen; by default each ends its episode."""
    rng = np.random.default_rng(seed)
    sample = Sample(
        num_transitions=rows,
        mass=1.0,
        frame=VECTORS.frame,
        keys=np.arange(rows, dtype=np.uint64),
        priority=np.ones(rows),
        transitions=make_transitions(
            rows,
            action=rng.integers(0, 2, rows),
            reward=rng.normal(size=rows),
            discount=discount,
            steps=rng.integers(1, N_STEP + 1, rows),
        ),
        frame_sizes=np.full((rows, 1 + N_STEP), VECTORS.frame.nbytes, np.uint32),
        frames=b"",
    )
    return rng.normal(size=(rows, 1 + N_STEP, 4)).astype(np.float32), sample


def ones(sample: Sample) -> Float32s:
    return np.ones(len(sample.keys), np.float32)


def copy_of(trainer: Trainer) -> State:
    return {group: {name: tensor.clone() for name, tensor in named.items()} for group, named in trainer.state().items()}


def equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(
        left[group].keys() == right[group].keys()
        and all(torch.equal(tensor, right[group][name]) for name, tensor in left[group].items())
        for group in left
    )


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("spec", [IMAGES, VECTORS], ids=["images", "vectors"])
def test_actor_priorities_equal_learner_td_errors(spec: EnvSpec, double: bool) -> None:
    """Where target and online are equal and no parameters came over the window."""
    trainer = Trainer(make_config(spec, double=double), spec)
    segments = act(trainer, spec, num_lanes=3, decisions=60, seed=1)
    shipped = np.concatenate([segment.transitions["td_error"] for segment in segments])
    windows, sample = sampled(segments, spec.frame, rows=128)
    result = trainer.step(windows, sample, ones(sample))
    assert result.td_error is not None
    np.testing.assert_allclose(result.td_error, shipped[sample.keys], rtol=1e-4, atol=1e-5)
    # All kinds of ends were among them: terminated, truncated within the window, and none.
    discount, steps = sample.transitions["discount"], sample.transitions["steps"]
    assert (discount == 0).any()
    assert ((discount > 0) & (steps < N_STEP)).any()
    assert ((discount > 0) & (steps == N_STEP)).any()


def test_step_reports_the_td_error_before_the_update() -> None:
    trainer = Trainer(make_config(learning_rate=0.1), VECTORS)
    windows, sample = made_up(8)
    with torch.inference_mode():
        q = trainer.online(torch.from_numpy(windows[:, :1])).numpy()
    expected = np.abs(sample.transitions["reward"] - q[np.arange(8), sample.transitions["action"]])
    result = trainer.step(windows, sample, ones(sample))
    assert result.td_error is not None
    assert result.td_error.dtype == np.float32
    np.testing.assert_allclose(result.td_error, expected, rtol=1e-5)
    np.testing.assert_allclose(result.metrics["train/td_error_mean"], expected.mean(), rtol=1e-5)
    assert trainer.updates == 1


@pytest.mark.parametrize(("reward", "weight"), [(math.inf, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_a_loss_that_is_not_finite_skips_the_step(reward: float, weight: float) -> None:
    trainer = Trainer(make_config(), VECTORS)
    windows, sample = made_up(8)
    trainer.step(windows, sample, ones(sample))
    before = copy_of(trainer)

    spoilt, weights = dataclasses.replace(sample, transitions=sample.transitions.copy()), ones(sample)
    spoilt.transitions["reward"][3], weights[3] = reward, weight
    result = trainer.step(windows, spoilt, weights)
    assert result.td_error is None
    assert result.metrics == {}
    assert trainer.updates == 1
    assert equal(trainer.state(), before)
    assert "loss" in result.reason
    assert np.flatnonzero(result.hopeless).tolist() == ([] if math.isnan(weight) else [3])

    assert trainer.step(windows, sample, ones(sample)).td_error is not None
    assert all(np.isfinite(array).all() for array in trainer.parameters().values())
    assert not equal(trainer.state(), before)


def test_rows_with_weight_zero_do_not_affect_the_step() -> None:
    left, right = Trainer(make_config(), VECTORS), Trainer(make_config(), VECTORS)
    windows, sample = made_up(8)
    other = dataclasses.replace(sample, transitions=sample.transitions.copy())
    other.transitions["reward"][5] = 1000
    weights = ones(sample)
    weights[5] = 0
    left.step(windows, sample, weights)
    right.step(windows, other, weights)
    assert equal(left.state(), right.state())


def test_target_is_copied_every_target_period_updates() -> None:
    trainer = Trainer(make_config(target_period=3), VECTORS)
    windows, sample = made_up(8)
    target = copy_of(trainer)["target"]
    assert equal({"": target}, {"": trainer.state()["online"]})
    for update in range(1, 8):
        trainer.step(windows, sample, ones(sample))
        if update % 3 == 0:
            target = copy_of(trainer)["online"]
        assert equal({"": target}, {"": trainer.state()["target"]})
        assert (update % 3 == 0) == equal({"": target}, {"": trainer.state()["online"]})


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_learning_rate_decays_with_the_updates(optimizer: str) -> None:
    settings = make_config(optimizer=optimizer, learning_rate=0.01, learning_rate_decay=2, average_updates=None)
    decaying = Trainer(settings, VECTORS)
    windows, sample = made_up(8)
    for update in range(5):
        constant = Trainer(loading.replace(settings, {"learner.learning_rate_decay": None}), VECTORS)
        constant.restore(copy_of(decaying), update)
        before, metrics = decaying.parameters(), decaying.step(windows, sample, ones(sample)).metrics
        constant.step(windows, sample, ones(sample))
        assert metrics["train/learning_rate"] == pytest.approx(0.01 / (1 + update / 2))
        for name, start in before.items():
            moved, full = decaying.parameters()[name] - start, constant.parameters()[name] - start
            np.testing.assert_allclose(moved, full / (1 + update / 2), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("average_updates", [2, 1000])
def test_the_average_is_over_the_last_updates(average_updates: int) -> None:
    trainer = Trainer(make_config(average_updates=average_updates), VECTORS)
    windows, sample = made_up(8)
    expected: dict[str, npt.NDArray[np.float64]] = {}
    for update in range(1, 15):
        trainer.step(windows, sample, ones(sample))
        share = max(1 / average_updates, 10 / (update + 9))
        for name, array in trainer.parameters().items():
            expected[name] = expected.get(name, np.zeros_like(array)) * (1 - share) + share * array
    assert trainer.average is not None
    assert not any(tensor.requires_grad for tensor in trainer.average.parameters())  # no graph that grows
    assert not equal({"": trainer.state()["average"]}, {"": trainer.state()["online"]})
    for name, tensor in trainer.state()["average"].items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_averaging_can_start_when_a_run_is_resumed() -> None:
    plain, averaging = Trainer(make_config(), VECTORS), Trainer(make_config(average_updates=3), VECTORS)
    windows, sample = made_up(8)
    plain.step(windows, sample, ones(sample))
    assert plain.state()["average"] == {}
    averaging.restore(plain.state(), plain.updates)
    assert equal({"": averaging.state()["average"]}, {"": plain.state()["online"]})


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_restored_training_continues_identically(optimizer: str, through_a_file: bool, tmp_path: Path) -> None:
    settings = make_config(optimizer=optimizer, target_period=4, average_updates=4)
    straight = Trainer(settings, VECTORS)
    for step in range(6):
        windows, sample = made_up(8, step, GAMMA)
        straight.step(windows, sample, ones(sample))
    state, updates = straight.state(), straight.updates
    if through_a_file:
        path = tmp_path / "one.safetensors"
        save(path, checkpoint_of(state, updates))
        read = load(path)
        state, updates = read.tensors, int(read.counters["updates"])

    resumed = Trainer(loading.replace(settings, {"run.seed": 5}), VECTORS)
    resumed.restore(state, updates)
    assert resumed.updates == 6
    assert equal(straight.state(), resumed.state())
    for step in range(6, 12):
        windows, sample = made_up(8, step, GAMMA)
        ahead, behind = (each.step(windows, sample, ones(sample)) for each in (straight, resumed))
        assert ahead.metrics == behind.metrics
        assert ahead.td_error is not None
        assert behind.td_error is not None
        np.testing.assert_array_equal(ahead.td_error, behind.td_error)
    assert equal(straight.state(), resumed.state())


def checkpoint_of(state: State, updates: int) -> Checkpoint:
    return Checkpoint(
        tensors=state,
        counters={"updates": updates},
        config=settings.to_tree(Config()),
        run_id="run",
        learner_incarnation=1,
        best_score=None,
        experience="",
        network="",
    )


def test_run_can_start_from_parameters_of_another_run() -> None:
    trained, fresh = Trainer(make_config(), VECTORS), Trainer(make_config(), VECTORS)
    windows, sample = made_up(8)
    trained.step(windows, sample, ones(sample))
    fresh.initialize(trained.state()["online"])
    assert equal({"": fresh.state()["online"]}, {"": trained.state()["online"]})
    assert equal({"": fresh.state()["target"]}, {"": trained.state()["online"]})
    assert fresh.updates == 0


@pytest.mark.parametrize(
    "learner",
    [{}, {"loss": "l2"}, {"optimizer": "rmsprop"}, {"double": False}],
    ids=lambda learner: "-".join(map(str, learner.values())) or "default",
)
def test_training_fits_a_fixed_batch(learner: dict[str, Any]) -> None:
    trainer = Trainer(make_config(learning_rate=2e-3, **learner), VECTORS)
    windows, sample = made_up(16)
    losses = [trainer.step(windows, sample, ones(sample)).metrics["train/loss"] for _ in range(200)]
    assert losses[-1] < 0.02 * losses[0]


def test_values_propagate_through_the_target_network() -> None:
    """s0 -> s1 -> end with reward 1 at the end alone: Q(s0) becomes gamma, and only by bootstrapping."""
    trainer = Trainer(make_config(learning_rate=3e-3, target_period=20), VECTORS)
    windows, sample = made_up(2)
    windows[0, 1] = windows[1, 0]  # the second observation follows the first
    sample = dataclasses.replace(sample, transitions=make_transitions(2, reward=[0, 1], discount=[GAMMA, 0], steps=1))
    # In the second state both actions earn the same, or the one not taken could be the greedy one.
    other = dataclasses.replace(sample, transitions=with_columns(sample.transitions, action=1))
    windows, sample = np.concatenate([windows, windows]), joined(sample, other)
    for _ in range(400):
        trainer.step(windows, sample, ones(sample))
    with torch.inference_mode():
        q = trainer.online(torch.from_numpy(windows[:2, :1])).numpy()
    np.testing.assert_allclose(q, np.array([[GAMMA, GAMMA], [1.0, 1.0]]), atol=0.05)


def joined(left: Sample, right: Sample) -> Sample:
    columns = ("keys", "priority", "transitions", "frame_sizes")
    return dataclasses.replace(
        left, **{name: np.concatenate([getattr(left, name), getattr(right, name)]) for name in columns}
    )


def test_beta_anneals_with_the_updates_up_to_one() -> None:
    trainer = Trainer(make_config(beta=0.3, beta_annealing=0.25), VECTORS)
    windows, sample = made_up(4)
    seen = []
    for _ in range(4):
        seen.append(trainer.beta)
        assert trainer.step(windows, sample, ones(sample)).metrics["train/beta"] == seen[-1]
    assert seen == pytest.approx([0.3, 0.55, 0.8, 1.0])


@pytest.mark.parametrize("double", [True, False])
def test_double_q_selects_actions_with_the_online_network(double: bool) -> None:
    trainer, other = Trainer(make_config(double=double), VECTORS), Trainer(make_config(), VECTORS)
    torch.nn.init.normal_(next(other.online.parameters()))
    trainer.target.load_state_dict(other.online.state_dict())
    windows, sample = made_up(64, discount=GAMMA)
    rows, following = np.arange(64), torch.from_numpy(windows[np.arange(64), sample.transitions["steps"]][:, None])
    with torch.inference_mode():
        q = trainer.online(torch.from_numpy(windows[:, :1])).numpy()[rows, sample.transitions["action"]]
        chosen = trainer.online(following).numpy().argmax(1)
        valued = trainer.target(following).numpy()
    value = valued[rows, chosen] if double else valued.max(1)
    assert (valued[rows, chosen] != valued.max(1)).any()
    td_error = trainer.step(windows, sample, ones(sample)).td_error
    assert td_error is not None
    np.testing.assert_allclose(td_error, abs(sample.transitions["reward"] + GAMMA * value - q), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_loss_setting_selects_squared_error_or_huber(loss: str) -> None:
    trainer = Trainer(make_config(loss=loss), VECTORS)
    windows, sample = made_up(16)
    rows = sample.transitions
    large = dataclasses.replace(sample, transitions=with_columns(rows, reward=10 * rows["reward"]))
    result = trainer.step(windows, large, ones(sample))
    error = result.td_error
    assert error is not None
    huber = np.where(error < 1, error**2 / 2, error - 0.5)
    assert result.metrics["train/loss"] == pytest.approx((huber if loss == "huber" else error**2 / 2).mean(), rel=1e-4)


def test_the_gradient_is_clipped() -> None:
    trainer = Trainer(make_config(max_grad_norm=0.01), VECTORS)
    windows, sample = made_up(16)
    result = trainer.step(windows, sample, ones(sample))
    gradients = [parameter.grad for parameter in trainer.online.parameters() if parameter.grad is not None]
    assert float(torch.nn.utils.get_total_norm(gradients)) == pytest.approx(0.01, rel=1e-3)
    assert result.metrics["train/grad_norm"] > 0.02  # as it was


def test_seed_determines_the_initial_parameters() -> None:
    def first(seed: int) -> Float32s:
        return next(iter(Trainer(loading.replace(make_config(), {"run.seed": seed}), VECTORS).parameters().values()))

    assert (first(1) == first(1)).all()
    assert (first(1) != first(2)).any()


def test_parameters_are_copies() -> None:
    trainer = Trainer(make_config(), VECTORS)
    windows, sample = made_up(4)
    before = trainer.parameters()
    kept = {name: array.copy() for name, array in before.items()}
    trainer.step(windows, sample, ones(sample))
    assert all((before[name] == kept[name]).all() for name in before)
    assert any((trainer.parameters()[name] != kept[name]).any() for name in before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (VECTORS, r"needs uint8 images .* not float32 \(4,\); use mlp for agent\.network"),
        (EnvSpec(FrameSpec((10, 84), "uint8", 4), 2), r"frames of at least 20x20, not 10x84; raise env\.frame_height"),
    ],
)
def test_network_that_does_not_fit_the_env_is_a_user_error(spec: EnvSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(make_config(IMAGES), spec)


def test_missing_gpu_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
        return
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"learner\.device is cuda and torch finds no GPU; set learner\.device=cpu"):
        Trainer(make_config(device="cuda"), VECTORS)
