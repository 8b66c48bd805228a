"""Checks of a host alone: software, devices, memory, disks, limits."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import psutil
from packaging.requirements import Requirement

from apex_zmq.config.check import check_temporary_directory
from apex_zmq.config.settings import Config
from apex_zmq.envs.emulators import FCEUmm, NESPy, core_path, rom_path
from apex_zmq.envs.make import EnvError, env_spec
from apex_zmq.errors import INSTALL, ConfigError, UserError
from apex_zmq.replay.disk import budget
from apex_zmq.rundir import directory as rundir
from apex_zmq.watch.doctor.check import Check, failed

SHOWN = ("torch", "numpy", "numba", "pyzmq")  # libraries whose versions are shown
CHECKPOINT_COPIES = 5  # copies of the network per checkpoint: online, target, averaged, two moments
CHECKPOINTS_BESIDE = 3  # the best two, and one that is being written
DESCRIPTORS = 100  # file descriptors of a role without connections
CONNECTIONS = {"learner": 2, "replay": 1}  # per actor
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def check_libraries(distribution: str = "apex_zmq") -> Check:
    """Check that the requirements of a distribution are installed in supported versions."""
    try:
        listed = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        found = f"{distribution} is not installed, so its requirements are unknown"
        return Check("libraries", "warn", found, INSTALL)
    wrong, versions = [], {}
    for requirement in map(Requirement, listed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = versions[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Check("libraries", "fail", ", ".join(wrong), INSTALL)
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    return Check("libraries", "ok", f"{len(versions)} in supported versions: {shown}")


def check_network(config: Config) -> tuple[Check, dict[str, npt.NDArray[Any]]]:
    """Check that environment and network can be created. Returns the network's parameters too; empty: they cannot."""
    try:
        from apex_zmq.agent.networks import make_network, to_arrays

        spec = env_spec(config.env)
        network = dict(to_arrays(make_network(config.agent, spec.frame, spec.num_actions, seed=0)))
    except (UserError, ImportError) as error:
        return failed("network", error), {}
    size = sum(array.size for array in network.values())
    return Check("network", "ok", f"{config.agent.network} with {size:,} parameters, for {config.env.id}"), network


def check_emulator(kind: str, game: str) -> Check:
    """Check emulator and ROM of a Mario game by running a frame. kind: as `env.emulator`."""
    fallback = None
    try:
        rom = rom_path(game)
        if kind == "auto":
            try:
                core_path()
            except EnvError as error:
                kind, fallback = "nes-py", failed("emulator", error)
        emulator = NESPy(game) if kind == "nes-py" else FCEUmm(game)
        emulator.step(0)
        emulator.close()
    except (UserError, ImportError) as error:
        return failed("emulator", error)
    if fallback is not None:
        return fallback._replace(level="warn", found=f"nes-py, several times slower than FCEUmm: {fallback.found}")
    return Check("emulator", "ok", f"{'nes-py' if kind == 'nes-py' else 'FCEUmm'} runs {rom}")


def check_gpu(name: str) -> Check:
    """Check that the learner's device exists and computes. name: as `learner.device`."""
    try:
        import torch

        from apex_zmq.agent.trainer import choose_device

        device = choose_device(name)
        torch.ones(1, device=device).add(1).item()
    except (UserError, ImportError) as error:
        return failed("gpu", error)
    except RuntimeError as error:
        found = f"the device cannot compute: {' '.join(str(error).split())}"
        return Check("gpu", "fail", found, "install the build of torch for the GPU's driver")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        return Check("gpu", "ok", f"{properties.name}, {memory}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    if name == "auto" and NVIDIA_DRIVER.exists():
        found = f"torch {torch.__version__} finds none, although a driver is installed; the learner uses the CPU"
        return Check("gpu", "warn", found, "install the build of torch for the CUDA version that nvidia-smi shows")
    return Check("gpu", "ok", "none; the learner uses the CPU")


def check_memory(config: Config, shards: int, resident: int) -> Check:
    """Check that the shards of this host fit its memory. resident: bytes that they already occupy."""
    try:
        needed = budget.check_memory(config, shards)
    except UserError as error:
        return failed("memory", error)
    available = psutil.virtual_memory().available + resident
    found = f"replay needs up to {needed / 1e9:.1f} GB of {available / 1e9:.1f} GB available"
    if needed > available:
        return Check("memory", "warn", found, "stop other programs, or lower replay.arena_bytes")
    return Check("memory", "ok", found)


def check_disks(
    config: Config, roles: Sequence[str], shards: int, network_bytes: int, *, together: bool = False
) -> Iterator[Check]:
    """Check the disk space of learner and replay. together: the replay uses the run directory, as under apex-train."""
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
    """Check that a directory is writable and has space. needed: bytes in total. kept: bytes of them already written."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return Check(name, "fail", f"{place} cannot be written", f"change its owner, or set another {setting}")
    free = shutil.disk_usage(place).free + kept
    found = f"{directory} needs up to {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB"
    if needed > free:
        return Check(name, "fail", found, f"free disk space, or set another {setting}")
    return Check(name, "ok", found)


def check_sockets() -> Check:
    """Check that apex-train can make its ipc sockets."""
    directory = tempfile.gettempdir()
    try:
        check_temporary_directory(directory)
    except ConfigError as error:
        return failed("sockets", error)
    return Check("sockets", "ok", f"in {directory}")


def check_open_files(actors: int, roles: Sequence[str]) -> Check:
    """Check that the limit on open files allows the connections of these roles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    per_actor = max(CONNECTIONS.get(role, 0) for role in roles)
    needed = DESCRIPTORS + per_actor * actors
    if soft < needed:
        raisable = hard == resource.RLIM_INFINITY or hard >= needed
        remedy = f"ulimit -n {needed}" if raisable else "raise the hard limit (LimitNOFILE= of systemd, limits.conf)"
        found = f"limit {soft}, but {needed} are needed" + (f" with {actors} actors" if per_actor else "")
        return Check("open files", "fail", found, remedy)
    capacity = f", enough for {(soft - DESCRIPTORS) // per_actor} actors" if per_actor else ""
    return Check("open files", "ok", f"limit {soft}{capacity}")
