"""Checkpoints: one safetensors file each, everything that is no tensor as JSON in its header.

Reading executes nothing that is in the file. A run directory holds numbered checkpoints
`step-000005000.safetensors`, and `latest.safetensors` and `best.safetensors`, each a hard link
to what was the newest, or the best, when it was saved; so no numbered file is needed to keep them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apex_zmq.errors import CheckpointError
from apex_zmq.rundir.files import replacing

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
LATEST = "latest.safetensors"
BEST = "best.safetensors"
BEST_EVAL = "best-eval.safetensors"  # written by an evaluator
Tensors = dict[str, Tensor]

_METADATA_KEY = "apex_zmq_checkpoint"
_GROUPS = ("online", "average", "target", "optimizer", "random")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All a run needs to go on, or an evaluator to play. Loaded tensors lie on the CPU.

    Everything but the tensors must be JSON: plain dicts, lists, strings, finite numbers, None.
    """

    # "online", "average" (empty without `learner.average_updates`), "target", "optimizer" (`optimizer_to_tensors`),
    # "random" (torch's states)
    tensors: dict[str, Tensors]
    counters: dict[str, float]  # "updates", an integer, is required; decisions, episodes, ...
    config: dict[str, Any]  # `config.to_tree`
    run_id: str
    epoch: int  # of the learner, in ns: the next one must be above it
    best_score: float | None  # of the evaluation that chose the best checkpoint so far
    experience: str  # signature
    network: str  # signature

    @property
    def played(self) -> Tensors:
        """The parameters that an evaluation plays: averaged where they were averaged."""
        return self.tensors.get("average") or self.tensors["online"]

    def on(self, emulator: str | None) -> Checkpoint:
        """The same, to be played on another emulator (`env.emulator`); None: as it is."""
        if emulator is None:
            return self
        env = self.config["env"] | {"emulator": emulator}
        return dataclasses.replace(self, config=self.config | {"env": env})


_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "counters": dict,
    "config": dict,
    "run_id": str,
    "epoch": int,
    "best_score": (int, float, type(None)),
    "experience": str,
    "network": str,
}


def save(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` holds either its former content or all of the new one.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    tensors = {
        f"{group}/{name}": tensor.detach().contiguous()
        for group, named in checkpoint.tensors.items()
        for name, tensor in named.items()
    }
    header = {"format_version": FORMAT_VERSION} | {name: getattr(checkpoint, name) for name in _JSON_TYPES}
    data = safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(header, allow_nan=False)})
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint file, or the latest one of a run directory.

    Raises:
        CheckpointError: no such file, damaged, not one of ours, or of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        path = _latest(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = _read_header(path, file.metadata() or {})
            tensors: dict[str, Tensors] = {group: {} for group in _GROUPS}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                group, _, name = key.partition("/")
                tensors.setdefault(group, {})[name] = file.get_tensor(key)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}; name a checkpoint file or a run directory") from None
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        if _looks_like_safetensors(path):
            remedy = "it is truncated or damaged, use another of its run's step-*.safetensors"
        else:
            remedy = "it is no safetensors file, name one that this program saved"
        raise CheckpointError(f"cannot read checkpoint {path}: {remedy} ({error})") from None
    return Checkpoint(tensors=tensors, **header)


def _latest(directory: Path) -> Path:
    """The one a run goes on from. A learner killed before it had a name for its first leaves that under its number."""
    if (directory / LATEST).is_file():
        return directory / LATEST
    if numbered := sorted(directory.glob("step-*.safetensors"), key=_age):
        return numbered[-1]
    raise CheckpointError(f"{directory} holds no {LATEST}; name a run directory that has one, or a checkpoint file")


def _age(path: Path) -> tuple[int, str]:
    """Sorts by age, not by number: a run resumed from an earlier checkpoint counts up from there."""
    return path.stat().st_mtime_ns, path.name


def to_play(path: Path | str) -> Path:
    """The checkpoint file itself, or of a run directory the best: by evaluation, else by training, else the latest."""
    path = Path(path)
    names = (BEST_EVAL, BEST, LATEST) if path.is_dir() else ()
    return next((path / name for name in names if (path / name).is_file()), path)


def _read_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file of another program; name one that this program saved")
    try:
        header: dict[str, Any] = json.loads(metadata[_METADATA_KEY])
        version = int(header.pop("format_version"))
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has checkpoint format {version}, this program reads up to {FORMAT_VERSION}; update apex_zmq"
            )
        if header.keys() != _JSON_TYPES.keys():
            raise ValueError(f"fields {', '.join(sorted(header.keys() ^ _JSON_TYPES.keys()))}")
        for name, kind in _JSON_TYPES.items():
            if not isinstance(header[name], kind):
                raise ValueError(f"{name} is a {type(header[name]).__name__}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); use another checkpoint") from None
    return header


def _looks_like_safetensors(path: Path) -> bool:
    """Whether the JSON header starts where it should, after its own length."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """As `replacing`, but raises CheckpointError."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"cannot write {path}: {reason}; check the directory's space and permissions") from None


class CheckpointStore:
    """The checkpoints of one run directory, which one learner at a time writes.

    Args:
        directory: created when missing.
        keep: numbered checkpoints kept, the last written; 0 keeps all.

    Raises:
        CheckpointError: the directory cannot be made.
    """

    def __init__(self, directory: Path | str, keep: int) -> None:
        self.directory = Path(directory)
        self._keep = keep
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for abandoned in self.directory.glob(".step-*.safetensors.tmp"):  # an evaluator may be writing others
                abandoned.unlink()
        except OSError as error:
            raise CheckpointError(
                f"cannot use run directory {self.directory}: {error.strerror}; name another"
            ) from None

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Save as step-<updates>.safetensors, as the latest, and as the best if it is; return the path.

        Raises:
            CheckpointError: a file cannot be written.
        """
        path = self.directory / f"step-{int(checkpoint.counters['updates']):09d}.safetensors"
        save(path, checkpoint)
        # The best first: the latest tells a resumed run its score.
        for name in (BEST, LATEST) if best else (LATEST,):
            with _replacing(self.directory / name) as temporary:
                _link(path, temporary)
        self._prune(path)
        return path

    def _prune(self, written: Path) -> None:
        if self._keep == 0:
            return
        try:
            others = [path for path in self.directory.glob("step-*.safetensors") if path != written]
            for path in sorted(others, key=_age, reverse=True)[self._keep - 1 :]:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("former checkpoints stay in %s: %s", self.directory, error)


def _link(source: Path, target: Path) -> None:
    """Hard link, or copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
