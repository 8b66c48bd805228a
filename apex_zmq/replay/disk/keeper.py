"""Durable shards: recovery at startup, and periodic snapshots."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path

from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.replay.disk import snapshot
from apex_zmq.replay.disk.budget import disk_bytes
from apex_zmq.replay.disk.snapshot import Snapshot, SnapshotError
from apex_zmq.replay.governor import Governor
from apex_zmq.replay.store import Store
from apex_zmq.rundir.files import FileLock

log = logging.getLogger(__name__)

ARENA, SNAPSHOT, PREVIOUS, LOCK = "arena", "snapshot", "snapshot.previous", ".lock"


def keeper_of(config: Config, shard: int, signature: str) -> Keeper | None:
    """Make the keeper of a shard; None if the settings do not enable snapshots.

    Raises:
        ConfigError: as for `Keeper`.
    """
    replay = config.replay
    if replay.snapshot_dir is None or replay.snapshot_interval_s is None:
        return None
    directory = Path(replay.snapshot_dir) / f"replay-{shard}"
    keeper = Keeper(directory, signature, replay.snapshot_interval_s)
    needed = disk_bytes(config, shards=1)
    free = shutil.disk_usage(directory).free + sum(file.stat().st_blocks * 512 for file in directory.iterdir())
    log.log(
        logging.WARNING if needed > free else logging.INFO,
        "shard %d is stored in %s: needs up to %.2f GB, %.2f GB are free",
        shard,
        directory,
        needed / 1e9,
        free / 1e9,
    )
    return keeper


class Keeper:
    """The directory of one shard, locked by one process at a time.

    arena_path: file of the store's records.

    Raises:
        ConfigError: the directory is in use, cannot be written, or holds experience of another signature.
    """

    def __init__(self, directory: Path, signature: str, interval_s: float) -> None:
        self.arena_path = directory / ARENA
        self._directory = directory
        self._signature = signature
        self._interval_s = interval_s
        self._thread: threading.Thread | None = None
        self._next = 0.0  # monotonic
        self._recovered = self._dropped = self._written = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / LOCK)
            try:
                self._found = self._read()
                if self._found is None:
                    self.arena_path.unlink(missing_ok=True)
            except BaseException:
                self._lock.release()
                raise
        except BlockingIOError:
            raise ConfigError(f"{directory} is in use by another shard; set another replay.snapshot_dir") from None
        except OSError as error:
            raise ConfigError(f"cannot use {directory}: {error.strerror}; set another replay.snapshot_dir") from None
        self._newest_at = None if self._found is None else self._found.time

    def _read(self) -> Snapshot | None:
        """Return the newest snapshot that verifies; None if none does."""
        for name in (SNAPSHOT, PREVIOUS):
            path = self._directory / name
            try:
                found = snapshot.decode(path.read_bytes())
            except FileNotFoundError:
                continue
            except SnapshotError as error:
                log.error("snapshot %s is %s; trying the previous one", path, error)
                continue
            if found.signature != self._signature:
                raise ConfigError(
                    f"{self._directory} holds experience of signature {found.signature}, but this config has "
                    f"{self._signature}; set another replay.snapshot_dir, or use the config of its run"
                )
            return found
        if self.arena_path.exists():
            log.error("no valid snapshot in %s: its records are dropped, the replay starts empty", self._directory)
        return None

    def recover(self, store: Store, governor: Governor) -> None:
        """Restore the governor's counts, and the records that verify into the empty store."""
        found, self._found = self._found, None
        if found is None:
            return
        begin = time.monotonic()
        recovery = store.restore(found.store)
        newer = max(0, store.next_key - found.store.next_key) if recovery.spans else 0
        self._recovered, self._dropped = recovery.recovered, recovery.dropped
        if recovery.spans:
            governor.resume(found.inserts, found.samples, newer)
        log.log(
            logging.WARNING if recovery.dropped else logging.INFO,
            "recovered %d transitions from %s in %.1f s, %d of them newer than its snapshot; dropped %d",
            recovery.recovered,
            self._directory,
            time.monotonic() - begin,
            newer,
            recovery.dropped,
        )
        # Dropped keys are assigned again, so a new snapshot must first exclude their former transitions.
        captured = self._capture(store, governor) if recovery.dropped else None
        if captured is not None:
            self._write(store, captured)

    def maybe_snapshot(self, store: Store, governor: Governor) -> None:
        """If a snapshot is due, copy the priorities and write it in a thread."""
        now = time.monotonic()
        if now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        captured = self._capture(store, governor)
        if captured is not None:
            self._next = now + self._interval_s
            self._thread = threading.Thread(target=self._write, args=(store, captured), name="snapshot", daemon=True)
            self._thread.start()

    def close(self, store: Store, governor: Governor) -> None:
        """Write a last snapshot and unlock the directory."""
        if self._thread is not None:
            self._thread.join()
        captured = self._capture(store, governor)
        if captured is not None:
            self._write(store, captured)
        self._lock.release()

    def _capture(self, store: Store, governor: Governor) -> Snapshot | None:
        """Capture the shard's state; None if it has no records, or they are not in a file."""
        state = store.state() if store.is_durable else None
        if state is None:
            return None
        return Snapshot(
            time=time.time(),
            signature=self._signature,
            inserts=governor.inserts,
            samples=governor.samples,
            store=state,
        )

    def _write(self, store: Store, captured: Snapshot) -> None:
        try:
            store.sync()
            snapshot.write(self._directory / SNAPSHOT, captured, self._directory / PREVIOUS)
        except OSError as error:
            log.error("cannot write a snapshot, the previous one stays in use: %s", error)
            return
        self._written += 1
        self._newest_at = captured.time

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics for the shard's status; snapshot_age_s, in seconds, only once a snapshot exists."""
        counts = {"recovered": self._recovered, "dropped": self._dropped, "snapshots": self._written}
        at = self._newest_at
        return counts | ({} if at is None else {"snapshot_age_s": max(0.0, time.time() - at)})
