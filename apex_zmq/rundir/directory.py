"""The directory of a run: choosing and checking it, its settings, and the lock of its learner."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

from apex_zmq.errors import ConfigError
from apex_zmq.rundir.files import FileLock, replacing

log = logging.getLogger(__name__)

RUNS = Path("checkpoints")
LOCK = ".lock"
SETTINGS = "config.yaml"


def choose(given: Path | None, config_name: str, resume: bool) -> Path:
    """Return the given run directory; by default a new one named by config and time, or the newest one to resume.

    Raises:
        ConfigError: the config has no run to resume.
    """
    if given is not None:
        return given
    if not resume:
        return RUNS / f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    ours = re.compile(re.escape(config_name) + r"-\d{8}-\d{6}")  # not runs of a config named NAME-2
    runs = [path for path in RUNS.glob("*") if ours.fullmatch(path.name) and holds_run(path)]
    if not runs:
        raise ConfigError(f"--resume found no run {RUNS}/{config_name}-*; name one with --run-dir")
    from apex_zmq.rundir.checkpoint import age  # imports torch

    return max(runs, key=lambda path: (age(path), path.name))


def check(path: Path, resume: bool) -> None:
    """Check that this run can use a directory, without creating or changing anything.

    Raises:
        ConfigError: the directory is in use, holds a run (when not resuming) or holds none (when resuming).
    """
    held = holds_run(path)
    if resume and not held:
        raise ConfigError(
            f"run directory {path} has no checkpoint to resume; omit --resume or choose another --run-dir"
        )
    if not resume and held:
        raise ConfigError(f"run directory {path} already holds a run; pass --resume or choose another --run-dir")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run directory {path} is a file; choose another --run-dir")
    if (path / LOCK).exists():
        RunDirectory(path).release()


def holds_run(path: Path) -> bool:
    """Return whether the directory has a checkpoint to resume."""
    return any(path.glob("*.safetensors"))


def keep_settings(path: Path, settings: str) -> None:
    """Write the run's resolved settings, as YAML, for programs that join it. Write errors are logged, not raised."""
    try:
        with replacing(path / SETTINGS) as temporary:
            temporary.write_text(settings)
    except OSError as error:
        log.error("%s not written, training continues: %s", path / SETTINGS, error)


class RunDirectory:
    """A run directory, created if missing, locked by one learner at a time.

    Raises:
        ConfigError: the directory is in use or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / LOCK)
        except BlockingIOError:
            raise ConfigError(f"run directory {path} is in use by another learner; choose another --run-dir") from None
        except OSError as error:
            raise ConfigError(f"cannot use run directory {path}: {error.strerror}; choose another --run-dir") from None

    def release(self) -> None:
        """Release the lock on the directory."""
        self._lock.release()
