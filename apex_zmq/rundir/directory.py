"""The directory of a run: checkpoints, TensorBoard events, settings, and the lock of its learner."""

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
    """The run directory asked for, a new one named after config and time, or the config's newest to resume.

    Raises:
        ConfigError: nothing to resume.
    """
    if given is not None:
        return given
    if not resume:
        return RUNS / f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    ours = re.compile(re.escape(config_name) + r"-\d{8}-\d{6}")  # not those of another config, NAME-2 say
    runs = [path for path in RUNS.glob("*") if ours.fullmatch(path.name) and holds_run(path)]
    if not runs:
        raise ConfigError(f"--resume found no run {RUNS}/{config_name}-*; name one with --run-dir")
    return max(runs, key=lambda path: path.stat().st_mtime)


def check(path: Path, resume: bool) -> None:
    """Refuse a directory that this run cannot use, without making or changing anything.

    Raises:
        ConfigError: in use, holding another run (when not resuming), holding none (when resuming).
    """
    held = holds_run(path)
    if resume and not held:
        raise ConfigError(f"run directory {path} holds no checkpoint to resume; leave --resume out or name another")
    if not resume and held:
        raise ConfigError(f"run directory {path} holds a run already; --resume it or choose another --run-dir")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run directory {path} is a file; choose another --run-dir")
    if (path / LOCK).exists():
        RunDirectory(path).release()


def holds_run(path: Path) -> bool:
    """Whether there is a checkpoint to resume."""
    return any(path.glob("*.safetensors"))


def keep_settings(path: Path, settings: str) -> None:
    """Write down what a run is set to, YAML, for programs that want to find it. A full disk costs it, not the run."""
    try:
        with replacing(path / SETTINGS) as temporary:
            temporary.write_text(settings)
    except OSError as error:
        log.error("%s not written, training goes on: %s", path / SETTINGS, error)


class RunDirectory:
    """A run directory, made when missing, held by one learner at a time.

    Raises:
        ConfigError: in use, or not to be written.
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
