"""Checkpoints: one safetensors file each, with all other state as JSON in its header.

Loading a file executes no code from it. A run directory holds numbered checkpoints
`step-000005000.safetensors`, and `latest.safetensors` and `best.safetensors`, hard links to the newest
and the best of them; they remain when numbered files are pruned.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apex_zmq.errors import CheckpointError
from apex_zmq.rundir.files import replacing

log = logging.getLogger(__name__)

FORMAT_VERSION = 2  # 2: checksums of the tensors
LATEST = "latest.safetensors"
BEST = "best.safetensors"
BEST_EVAL = "best-eval.safetensors"  # written by apex-eval --follow
Tensors = dict[str, Tensor]

_METADATA_KEY = "apex_zmq_checkpoint"
_GROUPS = ("online", "average", "target", "optimizer", "random")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state from which a run resumes and an evaluator plays. Loaded tensors are on the CPU.

    Everything except the tensors must be JSON: plain dicts, lists, strings, finite numbers, None.
    """

    # "online", "average" (empty without `learner.average_updates`), "target", "optimizer" (`optimizer_to_tensors`),
    # "random" (torch's states)
    tensors: dict[str, Tensors]
    counters: dict[str, float]  # "updates", an integer, is required; decisions, episodes, ...
    config: dict[str, Any]  # `config.to_tree`
    run_id: str
    learner_incarnation: int  # Unix time in ns at the learner's start, or higher: it increases at every start
    best_score: float | None  # of the best checkpoint so far; None: no checkpoint has a score
    experience: str  # signature
    network: str  # signature

    @property
    def played(self) -> Tensors:
        """Parameters to play with: the averages if present, else those of the online network."""
        return self.tensors.get("average") or self.tensors["online"]

    def on(self, emulator: str | None) -> Checkpoint:
        """Return a copy that plays on another emulator (`env.emulator`); None: unchanged."""
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
_CHECKSUMS = "checksums"  # in the header since format 2: CRC-32 of each tensor's bytes
_ATTRIBUTES = {"epoch": "learner_incarnation"}  # fields of the file's header that `Checkpoint` names otherwise


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file of this program that is incomplete or has changed since it was written."""


def save(path: Path | str, checkpoint: Checkpoint) -> None:
    """Atomically write a checkpoint.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in checkpoint.tensors.items()
        for name, tensor in named.items()
    }
    header = {"format_version": FORMAT_VERSION} | {
        name: getattr(checkpoint, _ATTRIBUTES.get(name, name)) for name in _JSON_TYPES
    }
    header[_CHECKSUMS] = {key: _checksum(tensor) for key, tensor in tensors.items()}
    data = safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(header, allow_nan=False)})
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint file, or the newest undamaged checkpoint of a run directory.

    Raises:
        CheckpointError: the file is missing or damaged, or of another program or a newer format.
    """
    path = Path(path)
    if not path.is_dir():
        return _load(path)
    newest, *others = _newest(path)
    try:
        return _load(newest)
    except DamagedCheckpointError as error:
        for other in others:
            with suppress(DamagedCheckpointError):
                checkpoint = _load(other)
                log.warning("%s; %s is used", error, other)
                return checkpoint
        raise


def _load(path: Path) -> Checkpoint:
    with _reading(path) as file:
        header = _read_header(path, file.metadata() or {})
        checksums = header.pop(_CHECKSUMS, None)
        tensors: dict[str, Tensors] = {group: {} for group in _GROUPS}
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            group, _, name = key.partition("/")
            tensors.setdefault(group, {})[name] = tensor = file.get_tensor(key)
            if checksums is not None and checksums.get(key) != _checksum(tensor):
                raise DamagedCheckpointError(f"checkpoint {path} is damaged (checksum of {key}); use another")
    return Checkpoint(tensors=tensors, **header)


def age(directory: Path) -> tuple[int, float]:
    """Return a sort key by age of a run's newest checkpoint, from its own record; (0, 0): there is none to read."""
    for path in _newest(directory):
        with suppress(CheckpointError), _reading(path) as file:
            header = _read_header(path, file.metadata() or {})
            return header["learner_incarnation"], header["counters"]["updates"]
    return 0, 0.0


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a file, and turn errors of opening and reading into CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist; name a checkpoint file or a run directory") from None
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        if not _looks_like_safetensors(path):
            remedy = "it is not a safetensors file, name a checkpoint of this program"
            raise CheckpointError(f"cannot read checkpoint {path}: {remedy} ({error})") from None
        remedy = "the file is truncated or damaged, use another step-*.safetensors of its run"
        raise DamagedCheckpointError(f"cannot read checkpoint {path}: {remedy} ({error})") from None


def _newest(directory: Path) -> list[Path]:
    """Return the checkpoints to resume from, the newest first: latest, then the numbered ones."""
    latest = [directory / LATEST] if (directory / LATEST).is_file() else []
    found = latest + sorted(directory.glob("step-*.safetensors"), key=_age, reverse=True)
    if not found:
        raise CheckpointError(
            f"{directory} has no {LATEST}; name a run directory with a checkpoint, or a checkpoint file"
        )
    return found


def _age(path: Path) -> tuple[int, str]:
    """Return a sort key by age; numbers repeat if a run resumes from an earlier checkpoint."""
    return path.stat().st_mtime_ns, path.name


def to_play(path: Path | str) -> Path:
    """Return the file to play: `path`, or in a run directory best-eval, best or latest, whichever exists first."""
    path = Path(path)
    names = (BEST_EVAL, BEST, LATEST) if path.is_dir() else ()
    return next((path / name for name in names if (path / name).is_file()), path)


def _read_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file of another program; name a checkpoint of this one")
    try:
        header: dict[str, Any] = json.loads(metadata[_METADATA_KEY])
        version = int(header.pop("format_version"))
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has checkpoint format {version}, this program reads up to {FORMAT_VERSION}; update apex_zmq"
            )
        types = _JSON_TYPES | ({_CHECKSUMS: dict} if version >= 2 else {})
        if header.keys() != types.keys():
            raise ValueError(f"fields {', '.join(sorted(header.keys() ^ types.keys()))}")
        for name, kind in types.items():
            if not isinstance(header[name], kind):
                raise ValueError(f"{name} is a {type(header[name]).__name__}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} has a damaged header ({error}); use another checkpoint") from None
    return {_ATTRIBUTES.get(name, name): value for name, value in header.items()}


def _looks_like_safetensors(path: Path) -> bool:
    """Return whether a JSON header follows the length field."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """As `replacing`, but raise CheckpointError."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"cannot write {path}: {reason}; check the directory's space and permissions") from None


class CheckpointStore:
    """The checkpoints of one run directory; one learner at a time writes them.

    Args:
        directory: run directory, created if missing.
        keep: number of newest numbered checkpoints to keep; 0: all.

    Raises:
        CheckpointError: the directory cannot be created.
    """

    def __init__(self, directory: Path | str, keep: int) -> None:
        self.directory = Path(directory)
        self._keep = keep
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for abandoned in self.directory.glob(
                ".step-*.safetensors.tmp"
            ):  # other temporary files may belong to an evaluator
                abandoned.unlink()
        except OSError as error:
            raise CheckpointError(
                f"cannot use run directory {self.directory}: {error.strerror}; choose another"
            ) from None

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Save as step-<updates>.safetensors, link it as latest and, if `best`, as best; return its path.

        Raises:
            CheckpointError: a file cannot be written.
        """
        path = self.directory / f"step-{int(checkpoint.counters['updates']):09d}.safetensors"
        save(path, checkpoint)
        # Best before latest: a resumed run reads the best score from latest.
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
            log.warning("old checkpoints not removed from %s: %s", self.directory, error)


def _link(source: Path, target: Path) -> None:
    """Hard-link, or copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
