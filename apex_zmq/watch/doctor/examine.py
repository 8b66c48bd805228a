"""The sequence of all checks of a host."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from apex_zmq.config.settings import Config
from apex_zmq.envs.games import WORLDS
from apex_zmq.signature import network_signature
from apex_zmq.watch.doctor import host
from apex_zmq.watch.doctor.addresses import bound_here, check_endpoint, check_keys, find_holder, opened_here, roles_here
from apex_zmq.watch.doctor.check import Check
from apex_zmq.watch.doctor.peers import check_run

TRAIN = "train"  # in place of roles: all roles, started by apex-train, which chooses the addresses
ALL = ("actor", "replay", "learner")


def examine(config: Config, given: Sequence[str] = ()) -> Iterator[Check]:
    """Run the checks one by one.

    given: the roles of this host, or `TRAIN`; empty: the role of the keys, else those of this host's addresses.
    """
    train = TRAIN in given
    roles = list(ALL) if train else list(given) or roles_here(config)
    yield Check("roles", "ok", ", ".join(roles) + ("" if given else " (derived from keys or addresses; see --role)"))
    yield Check("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield host.check_libraries()
    network: dict[str, npt.NDArray[Any]] = {}
    if {"actor", "evaluator", "learner"} & {*roles}:
        check, network = host.check_network(config)
        yield check
    if {"actor", "evaluator"} & {*roles} and config.env.id in WORLDS:
        yield host.check_emulator(config.env.emulator, config.env.id)
    if "learner" in roles:
        yield host.check_gpu(config.learner.device)
    bound = [] if train else bound_here(config, roles)
    holders = {each: find_holder(each.address) for each in bound}
    shards = config.replay.shards if train else len({each.number for each in bound if each.server == "replay"})
    if "replay" in roles:
        resident = {each.pid: each.rss_bytes for each in holders.values() if each and each.role == "replay"}
        yield host.check_memory(config, shards, sum(resident.values()))
    network_bytes = sum(array.nbytes for array in network.values())
    yield from host.check_disks(config, roles, shards, network_bytes, together=train)
    if train:
        yield host.check_sockets()
    yield host.check_open_files(config.run.num_actors, roles)
    if train:
        return
    yield check_keys(config, roles, bound)
    opened = opened_here(config, roles)
    for each in [*bound, *(each for each in opened if each not in bound)]:
        yield check_endpoint(config, each, holders.get(each), here=each in bound, opens=each in opened)
    yield from check_run(config, network_signature(network) if network else None)
