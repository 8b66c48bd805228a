"""Checks of what a host has, whoever else there is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import psutil
from packaging.requirements import Requirement

from apex_zmq.config.settings import Config
from apex_zmq.envs.emulators import FCEUmm, NESPy, core_path, rom_path
from apex_zmq.envs.make import EnvError, env_spec
from apex_zmq.errors import INSTALL, UserError
from apex_zmq.replay.disk import budget
from apex_zmq.rundir import directory as rundir
from apex_zmq.watch.doctor.check import Check, failed

SHOWN = ("torch", "numpy", "numba", "pyzmq")  # libraries whose versions are told
CHECKPOINT_COPIES = 5  # of the network: online, target, averaged, two moments
CHECKPOINTS_BESIDE = 3  # the best two, and one that is being written
DESCRIPTORS = 100  # of a role to whom nobody has connected
CONNECTIONS = {"learner": 2, "replay": 1}  # that an actor keeps to them
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def check_python() -> Check:
    """Which interpreter this is; one that is too old would not have come so far."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_libraries(distribution: str = "apex_zmq") -> Check:
    """Whether all that a distribution requires is installed, in a version that it takes."""
    try:
        listed = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return Check("libraries", "warn", f"{distribution} is not installed: what it requires is not known", INSTALL)
    wrong, versions = [], {}
    for requirement in map(Requirement, listed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        versions[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Check("libraries", "fail", ", ".join(wrong), INSTALL)
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    return Check("libraries", "ok", f"{len(versions)} as required: {shown}")


def make_arrays(config: Config) -> dict[str, npt.NDArray[Any]]:
    """Parameters by name, as new, of the network that these settings ask for.

    Raises:
        EnvError, NetworkError: an environment that cannot be made, a network that does not fit it.
        ImportError: a library that cannot be loaded.
    """
    from apex_zmq.agent.networks import make_network, to_arrays

    spec = env_spec(config.env)
    return dict(to_arrays(make_network(config.agent, spec.frame, spec.num_actions, seed=0)))


def check_network(config: Config, network: Mapping[str, npt.NDArray[Any]]) -> Check:
    """What is played, and by what."""
    size = sum(array.size for array in network.values())
    return Check("network", "ok", f"{config.agent.network}, {size:,} parameters, plays {config.env.id}")


def check_emulator(kind: str, game: str) -> Check:
    """Whether emulator and ROM of a Mario game are there, by running a frame. kind: as `env.emulator`."""
    missing = ""
    try:
        rom = rom_path(game)
        if kind == "auto":
            try:
                core_path()
            except EnvError as error:
                kind, missing = "nes-py", str(error)
        emulator = NESPy(game) if kind == "nes-py" else FCEUmm(game)
        emulator.step(0)
        emulator.close()
    except (UserError, ImportError) as error:
        return failed("emulator", error)
    if missing:
        found, _, remedy = missing.partition("; ")
        return Check("emulator", "warn", f"nes-py, several times slower than FCEUmm: {found}", remedy)
    return Check("emulator", "ok", f"{'nes-py' if kind == 'nes-py' else 'FCEUmm'} plays {rom}")


def check_gpu(name: str) -> Check:
    """Whether the learner's device is there and computes. name: as `learner.device`."""
    try:
        import torch

        from apex_zmq.agent.trainer import choose_device

        device = choose_device(name)
        torch.ones(1, device=device).add(1).item()
    except (UserError, ImportError) as error:
        return failed("gpu", error)
    except RuntimeError as error:
        found = " ".join(str(error).split())
        return Check("gpu", "fail", f"it does not compute: {found}", "install the torch that is built for its driver")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        return Check("gpu", "ok", f"{properties.name}, {memory}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    if name == "auto" and NVIDIA_DRIVER.exists():
        found = f"none that torch {torch.__version__} finds, though there is a driver; the learner trains on the CPU"
        return Check("gpu", "warn", found, "install torch for the CUDA that nvidia-smi names")
    return Check("gpu", "ok", "none; the learner trains on the CPU")


def check_memory(config: Config, shards: int, resident: int) -> Check:
    """Whether the shards of this host fit its memory. resident: bytes that they have of it already."""
    try:
        needed = budget.check_memory(config, shards)
    except UserError as error:
        return failed("memory", error)
    available = psutil.virtual_memory().available + resident
    found = f"replay needs up to {needed / 1e9:.1f} GB of {available / 1e9:.1f} GB available"
    if needed > available:
        return Check("memory", "warn", found, "end what else uses it, or lower replay.arena_bytes")
    return Check("memory", "ok", found)


def check_disks(
    config: Config, roles: Sequence[str], shards: int, network_bytes: int, *, together: bool = False
) -> Iterator[Check]:
    """Room for the files of learner and replay. together: the replay's go to the run directory, as of apex-train."""
    run = Path(config.run.dir) if config.run.dir else rundir.RUNS
    if "learner" in roles:
        files = (config.learner.keep_checkpoints or 1) + CHECKPOINTS_BESIDE
        yield check_disk("disk", run, CHECKPOINT_COPIES * files * network_bytes, 0, "run.dir")
    snapshots = run if together else config.replay.snapshot_dir
    if "replay" in roles and snapshots and config.replay.snapshot_interval_s:
        directory = Path(snapshots)
        kept = sum(file.stat().st_blocks * 512 for file in directory.glob("replay-*/*"))
        setting = "run.dir" if together else "replay.snapshot_dir"
        yield check_disk("disk, replay", directory, budget.disk_bytes(config, shards), kept, setting)


def check_disk(name: str, directory: Path, needed: int, kept: int, setting: str) -> Check:
    """Whether a directory can be written and has room. needed, kept: bytes in all, and of them already there."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return Check(name, "fail", f"{place} cannot be written", f"change its owner, or set another {setting}")
    free = shutil.disk_usage(place).free + kept
    found = f"{directory} takes up to {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB"
    if needed > free:
        return Check(name, "fail", found, f"make room, or set another {setting}")
    return Check(name, "ok", found)


def check_open_files(actors: int, roles: Sequence[str]) -> Check:
    """Whether a process may have as many files and connections open as its role will."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    each = max(CONNECTIONS.get(role, 0) for role in roles)
    needed = DESCRIPTORS + each * actors
    if soft == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    found = f"{soft} at most" + (f", with {actors} actors {needed} are needed" if each else f", {needed} are needed")
    if soft < needed:
        raisable = hard == resource.RLIM_INFINITY or hard >= needed
        remedy = f"ulimit -n {needed}" if raisable else "raise the hard limit (LimitNOFILE= of systemd, limits.conf)"
        return Check("open files", "fail", found, remedy)
    room = f", enough for {(soft - DESCRIPTORS) // each} actors" if each else ""
    return Check("open files", "ok", f"{soft} at most{room}")
