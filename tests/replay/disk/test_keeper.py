"""A shard killed at any moment, and whatever happened to its files, is there again or says what is missing."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_zmq.errors import ConfigError
from apex_zmq.replay import record
from apex_zmq.replay.disk import arena, snapshot
from apex_zmq.replay.disk.keeper import ARENA, PREVIOUS, SNAPSHOT, Keeper
from apex_zmq.replay.governor import Governor
from apex_zmq.replay.store import Store
from apex_zmq.types import Shipment

from ..test_store import ALPHA, EPSILON, WINDOW, Transition, make_shipment, transitions_of

SIGNATURE = "0123456789abcdef"
CAPACITY, ARENA_BYTES = 60, 1 << 14


class Shard:
    """A store that is kept in a directory, and a dictionary that remembers all that was ever stored."""

    def __init__(self, directory: Path, model: dict[int, Transition] | None = None, **changes: Any) -> None:
        self.directory = directory
        self.keeper = Keeper(directory, changes.pop("signature", SIGNATURE), interval_s=1e9)
        size = {"capacity": CAPACITY, "arena_bytes": ARENA_BYTES, "alpha": ALPHA, "epsilon": EPSILON} | changes
        self.store = Store(frame_window=WINDOW, seed=0, arena_path=self.keeper.arena_path, **size)
        self.governor = Governor(min_size=20, samples_per_insert=2.0, tolerance=1e6, batch_size=8, max_segment=20)
        self.model = {} if model is None else dict(model)
        self.keeper.recover(self.store, self.governor)

    def append(self, shipment: Shipment) -> None:
        key = self.store.append(shipment)
        self.governor.inserts += shipment.segment.num_transitions
        self.model.update(enumerate(transitions_of(shipment), start=key))

    def update(self, rng: np.random.Generator) -> None:
        """New priorities for some, of which a few are retired."""
        stored = np.arange(self.store.first_key, self.store.next_key, dtype=np.uint64)
        keys = rng.permutation(stored)[: len(stored) // 2]
        td_error = rng.random(len(keys)).astype(np.float32)
        self.store.update(keys, td_error, rng.random(len(keys)) < 0.1)
        self.governor.samples += len(keys)

    def snapshot(self) -> None:
        taken = self.keeper._capture(self.store, self.governor)
        assert taken is not None
        self.keeper._write(self.store, taken)

    def kill(self) -> None:
        """As SIGKILL does: nothing more is written, the lock is free."""
        self.keeper._lock.release()

    def leaves(self) -> dict[int, float]:
        keys = np.arange(self.store.first_key, self.store.next_key)
        return dict(zip(keys.tolist(), self.store._tree.get(keys % self.store.capacity).tolist(), strict=True))

    def again(self, **changes: Any) -> Shard:
        self.kill()
        return Shard(self.directory, self.model, **changes)

    def check(self) -> None:
        """All that can be sampled is what was once stored under its key, and nothing contradicts itself."""
        self.store.check_valid()
        if not self.store.mass:
            return
        sample = self.store.sample(200)
        starts = itertools.accumulate(sample.frame_sizes.ravel().tolist(), initial=0)
        frames = [bytes(sample.frames[start:stop]) for start, stop in itertools.pairwise(starts)]
        for row, key in enumerate(sample.keys.tolist()):
            expected = self.model[key]
            found = frames[row * WINDOW : (row + 1) * WINDOW]
            assert found == expected.window + [b""] * (WINDOW - len(expected.window))
            assert sample.transitions[row] == expected.row
            assert self.store.actors_of([key]) == [expected.actor]


def turned(store: Store) -> bool:
    """Whether the newest record lies before the oldest."""
    return bool(store._head <= store._records[store.first_key % store.capacity])


def filled(directory: Path, rng: np.random.Generator, before: int = 8, after: int = 3, **changes: Any) -> Shard:
    """A shard with records older and newer than its snapshot, in a ring that has turned."""
    shard = Shard(directory, **changes)
    for _ in range(before):
        shard.append(make_shipment(rng, [int(rng.integers(1, 15))]))
    shard.update(rng)
    shard.snapshot()
    for _ in range(after):
        shard.append(make_shipment(rng, [int(rng.integers(1, 15))]))
    return shard


@given(seed=st.integers(0, 2**32 - 1), before=st.integers(1, 15), after=st.integers(0, 15))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_shard_recovers_all_records_and_priorities(tmp_path: Path, seed: int, before: int, after: int) -> None:
    """Newer records too, wherever the ring has got to since the snapshot: with the priorities they came with."""
    shutil.rmtree(tmp_path / "shard", ignore_errors=True)
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "PIECE", mmap.PAGESIZE)
        shard = filled(tmp_path / "shard", rng, before, after)
        incarnation, leaves, surplus = shard.store.incarnation, shard.leaves(), shard.governor.surplus
        inserts = shard.governor.inserts
        size = shard.store.num_transitions, shard.store.num_bytes, shard.store.mass

        again = shard.again()
        assert again.leaves() == leaves
        assert (again.store.num_transitions, again.store.num_bytes) == size[:2]
        assert again.store.mass == pytest.approx(size[2], rel=1e-12)
        assert again.keeper.metrics["recovered"] == size[0]
        assert again.keeper.metrics["dropped"] == 0
        assert again.store.incarnation != incarnation
        assert again.governor.inserts == inserts
        if after == 0:
            assert again.governor.surplus == surplus
        again.check()
        for _ in range(5):  # and goes on as a ring
            again.append(make_shipment(rng, [int(rng.integers(1, 15))]))
            again.check()
        last = again.again()
        assert last.leaves() == again.leaves()
        last.kill()


@pytest.fixture(scope="module")
def wrecks(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """A shard that was killed; its directory is to be copied."""
    shard = filled(tmp_path_factory.mktemp("wrecks") / "shard", np.random.default_rng(5), before=14, after=4)
    shard.snapshot()
    rng = np.random.default_rng(6)
    shard.append(make_shipment(rng, [5]))
    while not turned(shard.store):
        shard.append(make_shipment(rng, [5]))
    shard.kill()
    return shard


FILES = (ARENA, SNAPSHOT, PREVIOUS)


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_or_a_truncation_is_detected_or_harmless(
    tmp_path: Path, wrecks: Shard, data: st.DataObject
) -> None:
    directory = tmp_path / "shard"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(wrecks.directory, directory)
    damaged = data.draw(st.sets(st.sampled_from(FILES), min_size=1))
    for name in damaged:
        path = directory / name
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= data.draw(st.integers(1, 255))
        else:
            del content[place:]
        path.write_bytes(content)
    again = Shard(directory, wrecks.model)
    again.check()
    metrics, stored = again.keeper.metrics, wrecks.leaves()
    known_then = snapshot.decode((wrecks.directory / SNAPSHOT).read_bytes()).store
    for key, priority in again.leaves().items():
        known = {0.0, stored.get(key), wrecks.model[key].priority} if key in wrecks.model else {0.0}
        assert priority in known
    if len(damaged) == 1:
        assert damaged == {ARENA} or metrics["recovered"] == wrecks.store.num_transitions
        # What is neither there nor counted as missing is newer than the snapshot.
        unknown = wrecks.store.num_transitions - metrics["recovered"] - metrics["dropped"]
        assert unknown <= wrecks.store.next_key - known_then.next_key
    again.append(make_shipment(np.random.default_rng(1), [10]))
    again.check()
    again.kill()


def test_each_flipped_byte_of_a_snapshot_is_detected(wrecks: Shard) -> None:
    content = (wrecks.directory / SNAPSHOT).read_bytes()
    assert snapshot.decode(content).store.next_key > 0
    for place in range(len(content)):
        with pytest.raises(snapshot.SnapshotError):
            snapshot.decode(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(snapshot.SnapshotError):
            snapshot.decode(content[:place])


def test_only_records_with_bad_checksums_are_dropped(tmp_path: Path) -> None:
    shard = filled(tmp_path / "shard", np.random.default_rng(0), before=4, after=2, capacity=1000)
    damaged = [shard.store.first_key + 20, shard.store.next_key - 1]
    spans = []
    for key in damaged:
        start = int(shard.store._records[key])
        header = record.header_of(shard.store._arena[start:])
        spans.append(range(int(header["first_key"]), int(header["first_key"]) + int(header["transitions"])))
        shard.store._arena[start + record.layout_of(shard.store._arena[start:]).frames] ^= 1
    leaves = shard.leaves()
    again = shard.again(capacity=1000)
    lost = sum(map(len, spans))
    assert again.keeper.metrics["dropped"] == lost
    assert again.keeper.metrics["recovered"] == len(leaves) - lost
    assert again.leaves() == {
        key: 0.0 if key in spans[0] else priority for key, priority in leaves.items() if key not in spans[1]
    }
    again.check()
    third = again.again(capacity=1000)
    assert third.leaves() == again.leaves()
    assert third.keeper.metrics["dropped"] == 0, "counted twice"
    third.kill()


@pytest.mark.parametrize("changes", [{"capacity": 25}, {"capacity": 500, "arena_bytes": 2 * ARENA_BYTES}])
def test_recovery_at_another_size_keeps_the_newest_records(tmp_path: Path, changes: dict[str, int]) -> None:
    shard = filled(tmp_path / "shard", np.random.default_rng(3))
    leaves = shard.leaves()
    again = shard.again(**changes)
    kept = again.leaves()
    assert max(kept) == max(leaves)
    assert kept.items() <= leaves.items()
    assert changes["capacity"] - 15 < len(kept) <= changes["capacity"] or kept == leaves
    assert again.keeper.metrics["dropped"] == 0
    again.check()
    again.kill()


def test_new_alpha_uses_initial_td_errors_and_keeps_retired(tmp_path: Path) -> None:
    shard = filled(tmp_path / "shard", np.random.default_rng(3), after=0)
    before = shard.leaves()
    assert 0.0 in before.values()
    again = shard.again(alpha=1.0)
    for key, priority in again.leaves().items():
        initial = shard.model[key].priority ** (1 / ALPHA)
        assert priority == pytest.approx(initial if before[key] else 0.0, rel=1e-6)
    again.kill()


def test_recovered_sampler_continues_its_random_sequence(tmp_path: Path) -> None:
    shard = filled(tmp_path / "shard", np.random.default_rng(3), after=0)
    again = shard.again()
    assert again.store.sample(50).keys.tolist() == shard.store.sample(50).keys.tolist()
    again.kill()


def test_directory_of_other_experience_or_in_use_is_refused(tmp_path: Path) -> None:
    shard = filled(tmp_path / "shard", np.random.default_rng(3))
    with pytest.raises(ConfigError, match="in use by another shard"):
        Shard(tmp_path / "shard")
    shard.kill()
    with pytest.raises(ConfigError, match="holds experience of signature 0123456789abcdef"):
        Shard(tmp_path / "shard", signature="f" * 16)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot use"):
        Shard(tmp_path / "file")


def test_unreadable_snapshot_is_an_error_and_arena_is_kept(tmp_path: Path) -> None:
    """Starting empty would drop the shard, which a disk that answers again still has."""
    shard = filled(tmp_path / "shard", np.random.default_rng(3))
    shard.kill()
    (tmp_path / "shard" / SNAPSHOT).rename(tmp_path / "whole")
    (tmp_path / "shard" / SNAPSHOT).mkdir()
    before = (tmp_path / "shard" / ARENA).read_bytes()
    with pytest.raises(ConfigError, match="cannot use"):
        Shard(tmp_path / "shard")
    assert (tmp_path / "shard" / ARENA).read_bytes() == before


def test_files_of_an_older_format_are_refused_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "FORMAT_VERSION", 1)
        filled(tmp_path / "shard", np.random.default_rng(0)).kill()
    before = {path.name: path.read_bytes() for path in (tmp_path / "shard").iterdir()}
    with pytest.raises(ConfigError, match="have format 1, this program reads 2: start a new run, or delete them"):
        Shard(tmp_path / "shard")
    assert {path.name: path.read_bytes() for path in (tmp_path / "shard").iterdir()} == before


def test_records_of_an_earlier_log_are_not_recovered(tmp_path: Path) -> None:
    """A shard that began anew in the same file has the same keys at the same places."""
    rng = np.random.default_rng(3)
    shard = filled(tmp_path / "shard", rng, before=6, after=0)
    old = (tmp_path / "shard" / ARENA).read_bytes()
    shard.kill()
    for name in (SNAPSHOT, PREVIOUS):
        (tmp_path / "shard" / name).unlink(missing_ok=True)
    new = Shard(tmp_path / "shard")
    new.append(make_shipment(rng, [5]))
    new.snapshot()
    new.kill()
    stop = new.store._head
    merged = (tmp_path / "shard" / ARENA).read_bytes()[:stop] + old[stop:]
    (tmp_path / "shard" / ARENA).write_bytes(merged)
    again = Shard(tmp_path / "shard", new.model)
    assert list(again.leaves()) == list(range(5))
    again.kill()


def test_arena_file_uses_disk_space_only_for_the_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "PIECE", 2 << 20)  # a huge page: the kernel takes disk space for a whole one at once
    rng = np.random.default_rng(0)
    shipments = [make_shipment(rng, [10], 1000) for _ in range(20)]
    shard = Shard(tmp_path / "shard", capacity=400, arena_bytes=16 << 20)
    path = tmp_path / "shard" / ARENA
    for number in range(3000):
        shard.store.append(shipments[number % len(shipments)])
        if number % 100 == 99:
            assert path.stat().st_blocks * 512 <= shard.store.num_bytes + 3 * arena.PIECE
    assert path.stat().st_size == 16 << 20
    assert 3000 * shard.store.num_bytes // 40 > 16 << 20, "the ring has turned"
    assert shard.store.num_transitions == 400
    shard.kill()


def test_full_disk_disables_durability_and_shard_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "PIECE", mmap.PAGESIZE)
    rng = np.random.default_rng(0)
    shard = filled(tmp_path / "shard", rng, before=3, after=1)
    on_disk = shard.leaves()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    while shard.store.is_durable:
        shard.append(make_shipment(rng, [3], 300))
    for _ in range(3):
        shard.append(make_shipment(rng, [3], 300))
        shard.check()
    assert shard.keeper._capture(shard.store, shard.governor) is None
    monkeypatch.undo()
    again = shard.again()
    assert again.leaves().items() >= {key: on_disk[key] for key in again.leaves() if key in on_disk}.items()
    assert again.keeper.metrics["recovered"] > 0
    again.check()
    again.kill()


def test_failed_snapshot_write_keeps_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shard = filled(tmp_path / "shard", np.random.default_rng(0))
    before = (tmp_path / "shard" / SNAPSHOT).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    shard.snapshot()
    assert "No space left" in caplog.text
    assert shard.keeper.metrics["snapshots"] == 1
    assert (tmp_path / "shard" / SNAPSHOT).read_bytes() == before
    assert not (tmp_path / "shard" / f".{SNAPSHOT}.tmp").exists()
    shard.kill()
