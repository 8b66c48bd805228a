from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from apex_zmq.agent.networks import QNetwork, make_network
from apex_zmq.agent.optimizers import make_optimizer, optimizer_from_tensors, optimizer_to_tensors
from apex_zmq.config import loading, settings
from apex_zmq.errors import CheckpointError
from apex_zmq.rundir.checkpoint import BEST, LATEST, Checkpoint, CheckpointStore, load, save
from apex_zmq.types import FrameSpec

from ..conftest import ROOT

FRAME = FrameSpec((20, 20), "uint8", 2)
MODEL = ROOT / "models/mario-1-1/best.safetensors"


def make_checkpoint(updates: int = 5000, value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        tensors={
            "online": {"torso.weight": torch.full((2, 3), value), "head.bias": torch.tensor(0.5)},
            "target": {"torso.weight": torch.zeros(2, 3)},
            "optimizer": {},
            "average": {"torso.weight": torch.full((2, 3), -value), "head.bias": torch.tensor(0.25)},
            "random": {"torch": torch.get_rng_state()},
        },
        counters={"updates": updates, "decisions": 12345, "elapsed_s": 0.45},
        config=settings.to_tree(settings.Config()),
        run_id="run-1",
        learner_incarnation=1_700_000_000_123_456_789,
        best_score=None,
        experience="abc",
        network="def",
    )


def value_in(path: Path) -> float:
    return float(load(path).tensors["online"]["torso.weight"][0, 0])


def test_averaged_parameters_are_played_if_present() -> None:
    averaged = make_checkpoint()
    assert averaged.played is averaged.tensors["average"]
    plain = dataclasses.replace(averaged, tensors=averaged.tensors | {"average": {}})
    assert plain.played is averaged.tensors["online"]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    written = make_checkpoint()
    save(path, written)
    read = load(path)
    for field in dataclasses.fields(Checkpoint):
        if field.name != "tensors":
            assert getattr(read, field.name) == json.loads(json.dumps(getattr(written, field.name)))
    assert read.tensors.keys() == written.tensors.keys()
    for group, tensors in written.tensors.items():
        assert read.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read.tensors[group][name], tensor)
            assert read.tensors[group][name].dtype == tensor.dtype
    assert os.listdir(tmp_path) == ["one.safetensors"]

    assert loading.from_tree(read.config, "checkpoint") == settings.Config()


def test_loaded_tensors_survive_replacement_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save(path, make_checkpoint(value=1.0))
    read = load(path)
    save(path, make_checkpoint(value=2.0))
    assert float(read.tensors["online"]["torso.weight"][0, 0]) == 1.0
    assert value_in(path) == 2.0


def write_foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)


def write_with_header(path: Path, header: object) -> None:
    safetensors.torch.save_file({"online/w": torch.zeros(3)}, path, {"apex_zmq_checkpoint": json.dumps(header)})


def write_truncated(path: Path) -> None:
    save(path, make_checkpoint())
    os.truncate(path, path.stat().st_size - 10)


def write_truncated_in_header(path: Path) -> None:
    save(path, make_checkpoint())
    os.truncate(path, 100)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "checkpoint .* does not exist; name a checkpoint file or a run directory"),
        (lambda path: path.write_bytes(b""), "it is not a safetensors file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 a pickle in a zip archive"), "it is not a safetensors file"),
        (write_truncated, "truncated or damaged, use another"),
        (write_truncated_in_header, "truncated or damaged, use another"),
        (write_foreign, "of another program"),
        (lambda path: write_with_header(path, {"format_version": 99}), "format 99, this program reads up to 2; update"),
        (lambda path: write_with_header(path, {"format_version": 1}), "damaged header"),
        (lambda path: write_with_header(path, [1]), "damaged header"),
    ],
)
def test_bad_file_gives_a_one_line_error(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "bad.safetensors"
    write(path)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_types_in_the_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save(path, dataclasses.replace(make_checkpoint(), run_id=7))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="run_id is a int"):
        load(path)


def test_directory_without_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no latest\.safetensors"):
        load(tmp_path)


def test_failed_save_keeps_only_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.safetensors"
    save(path, make_checkpoint(value=1.0))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
            save(path, make_checkpoint(value=2.0))
    assert value_in(path) == 1.0
    assert os.listdir(tmp_path) == ["one.safetensors"]


def test_store_names_latest_and_best_and_prunes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", keep=2)
    for updates in (1000, 2000, 3000, 4000):
        path = store.save(make_checkpoint(updates, value=updates), best=updates == 2000)
        assert path.name == f"step-{updates:09d}.safetensors"
    names = {"step-000003000.safetensors", "step-000004000.safetensors", LATEST, BEST}
    assert set(os.listdir(store.directory)) == names
    assert value_in(store.directory) == 4000  # a run directory means its latest
    assert value_in(store.directory / BEST) == 2000
    assert (store.directory / LATEST).samefile(store.directory / "step-000004000.safetensors")


def test_keep_zero_keeps_all_and_keep_one_the_last(tmp_path: Path) -> None:
    for keep, left in ((0, 3), (1, 1)):
        store = CheckpointStore(tmp_path / str(keep), keep)
        for updates in (1, 2, 3):
            store.save(make_checkpoint(updates))
        assert len(list(store.directory.glob("step-*"))) == left


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(make_checkpoint(10, value=1.0), best=True)
    store.save(make_checkpoint(10, value=2.0))
    assert value_in(tmp_path) == 2.0
    assert value_in(tmp_path / "step-000000010.safetensors") == 2.0
    assert value_in(tmp_path / BEST) == 1.0


def test_run_resumed_from_earlier_step_keeps_new_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for age, updates in enumerate((4000, 5000)):
        os.utime(store.save(make_checkpoint(updates)), (age, age))
    assert store.save(make_checkpoint(3500)).exists()
    assert not (tmp_path / "step-000004000.safetensors").exists()
    assert (tmp_path / "step-000005000.safetensors").exists()


def test_failed_removal_of_old_checkpoints_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "step-000000001.safetensors").mkdir()
    CheckpointStore(tmp_path, keep=1).save(make_checkpoint(2, value=2.0))
    assert value_in(tmp_path) == 2.0
    assert "old checkpoints not removed" in caplog.text


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(1, value=1.0), best=True)
    store.save(make_checkpoint(2, value=2.0))
    assert value_in(tmp_path / LATEST) == 2.0
    assert value_in(tmp_path / BEST) == 1.0
    assert set(os.listdir(tmp_path)) == {"step-000000002.safetensors", LATEST, BEST}


def test_stale_temporary_files_are_removed_not_written_through(tmp_path: Path) -> None:
    numbered = CheckpointStore(tmp_path, keep=2).save(make_checkpoint(1, value=1.0))
    os.link(numbered, tmp_path / f".{LATEST}.tmp")
    save(tmp_path / LATEST, make_checkpoint(2, value=2.0))
    assert value_in(numbered) == 1.0
    (tmp_path / ".step-000000007.safetensors.tmp").write_bytes(b"half")
    CheckpointStore(tmp_path, keep=2)
    assert set(os.listdir(tmp_path)) == {numbered.name, LATEST}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_the_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save(path, make_checkpoint())
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(begin, begin + 64), len(whole) - 1]:
        path.write_bytes(whole)
        flip(path, position)
        with pytest.raises(CheckpointError, match=r"is damaged \(checksum of .*\); use another"):
            load(path)


def test_a_checkpoint_without_checksums_of_format_1_is_read(tmp_path: Path) -> None:
    assert load(MODEL).tensors["online"]
    with safe_open(MODEL, framework="pt") as file:
        assert json.loads(file.metadata()["apex_zmq_checkpoint"])["format_version"] == 1


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 400), lambda path: flip(path, -1)])
def test_the_newest_undamaged_checkpoint_of_a_run_is_used(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    for updates in (1, 2, 3):
        os.utime(store.save(make_checkpoint(updates)), ns=(updates, updates))
    damage(tmp_path / LATEST)  # a link to the third
    assert load(tmp_path).counters["updates"] == 2
    assert f"{tmp_path}/step-000000002.safetensors is used" in caplog.text
    for path in tmp_path.glob("step-*"):
        os.truncate(path, 400)
    with pytest.raises(CheckpointError, match=r"latest.safetensors: the file is truncated or damaged"):
        load(tmp_path)


def test_run_without_latest_link_loads_its_step_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "step-000000000.safetensors", make_checkpoint(0))
    assert load(tmp_path).counters["updates"] == 0
    CheckpointStore(tmp_path, keep=1).save(make_checkpoint(0, value=2.0))
    assert value_in(tmp_path / LATEST) == 2.0


def test_temporary_file_of_another_program_is_kept(tmp_path: Path) -> None:
    theirs = tmp_path / ".best-eval.safetensors.tmp"
    theirs.touch()
    CheckpointStore(tmp_path, keep=1)
    assert theirs.exists()


def test_unusable_run_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot use run directory"):
        CheckpointStore(tmp_path / "file" / "run", keep=1)


class Training:
    """A few deterministic gradient steps of a real network under a real optimizer."""

    def __init__(self, optimizer: str, seed: int) -> None:
        learner = settings.Learner(optimizer=optimizer, learning_rate=0.01)  # type: ignore[arg-type]
        self.network: QNetwork = make_network(settings.Agent("small"), FRAME, 3, seed=seed)
        self.optimizer = make_optimizer(learner, self.network.parameters())

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            frames = torch.randint(0, 256, (4, 2, 20, 20), dtype=torch.uint8, generator=generator)
            self.optimizer.zero_grad()
            (self.network(frames) - step).square().mean().backward()
            self.optimizer.step()


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_training_continues_identically_from_a_file(tmp_path: Path, name: str) -> None:
    straight = Training(name, seed=0)
    straight.steps(0, 5)
    tensors = {
        "online": dict(straight.network.state_dict()),
        "optimizer": optimizer_to_tensors(straight.optimizer, straight.network),
    }
    save(tmp_path / "one.safetensors", dataclasses.replace(make_checkpoint(), tensors=tensors))
    straight.steps(5, 10)

    resumed = Training(name, seed=1)
    read = load(tmp_path / "one.safetensors").tensors
    resumed.network.load_state_dict(read["online"])
    optimizer_from_tensors(resumed.optimizer, resumed.network, read["optimizer"])
    untouched = {key: tensor.clone() for key, tensor in read["optimizer"].items()}
    resumed.steps(5, 10)

    for key, tensor in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], tensor)
    ended = optimizer_to_tensors(resumed.optimizer, resumed.network)
    for key, tensor in optimizer_to_tensors(straight.optimizer, straight.network).items():
        assert torch.equal(ended[key], tensor)
    assert all(torch.equal(read["optimizer"][key], tensor) for key, tensor in untouched.items())


def test_hyperparameters_come_from_the_settings() -> None:
    training, resumed = Training("adam", seed=0), Training("adam", seed=0)
    training.steps(0, 1)
    resumed.optimizer.param_groups[0]["lr"] = 0.5
    optimizer_from_tensors(
        resumed.optimizer, resumed.network, optimizer_to_tensors(training.optimizer, training.network)
    )
    assert resumed.optimizer.param_groups[0]["lr"] == 0.5


def test_state_of_another_optimizer_or_network_is_refused() -> None:
    training, other = Training("adam", seed=0), Training("rmsprop", seed=0)
    training.steps(0, 1)
    tensors = optimizer_to_tensors(training.optimizer, training.network)
    with pytest.raises(CheckpointError, match=r"set learner\.optimizer to the checkpoint's"):
        optimizer_from_tensors(other.optimizer, other.network, tensors)
    for agent, num_actions in ((settings.Agent("small"), 4), (settings.Agent("mlp"), 3)):
        network = make_network(agent, FRAME, num_actions)
        optimizer = make_optimizer(settings.Learner(), network.parameters())
        with pytest.raises(CheckpointError, match=r"set agent\.network to the checkpoint's"):
            optimizer_from_tensors(optimizer, network, tensors)


def test_an_optimizer_that_took_no_step_yet_round_trips() -> None:
    training, resumed = Training("rmsprop", seed=0), Training("rmsprop", seed=0)
    tensors = optimizer_to_tensors(training.optimizer, training.network)
    assert tensors == {}
    optimizer_from_tensors(resumed.optimizer, resumed.network, tensors)
    training.steps(0, 2)
    resumed.steps(0, 2)
    for left, right in zip(training.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(left, right)
