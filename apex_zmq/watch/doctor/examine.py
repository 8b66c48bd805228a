"""All checks that concern a host, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy.typing as npt
import psutil

from apex_zmq.config.settings import Config
from apex_zmq.envs.games import WORLDS
from apex_zmq.errors import UserError
from apex_zmq.signature import network_signature
from apex_zmq.watch.doctor import links
from apex_zmq.watch.doctor.addresses import check_endpoint, check_keys
from apex_zmq.watch.doctor.check import Check, failed
from apex_zmq.watch.doctor.host import (
    check_disks,
    check_emulator,
    check_gpu,
    check_libraries,
    check_memory,
    check_network,
    check_open_files,
    check_python,
    make_arrays,
)
from apex_zmq.watch.doctor.peers import check_run

TRAIN = "train"  # in place of roles: all of them, by apex-train, which takes addresses of its own
ALL = ("actor", "replay", "learner")


def examine(config: Config, given: Sequence[str] = ()) -> Iterator[Check]:
    """Each check as it is done.

    given: the roles that run on this host, or `TRAIN`; empty: those that keys or else addresses speak for.
    """
    roles = list(ALL) if TRAIN in given else list(given) or links.roles_here(config)
    yield Check("roles", "ok", ", ".join(roles) + ("" if given else " (--role names others)"))
    yield check_python()
    yield check_libraries()
    network: dict[str, npt.NDArray[Any]] = {}
    if {"actor", "evaluator", "learner"} & {*roles}:
        try:
            network = make_arrays(config)
            yield check_network(config, network)
        except (UserError, ImportError) as error:
            yield failed("network", error)
    if {"actor", "evaluator"} & {*roles} and config.env.id in WORLDS:
        yield check_emulator(config.env.emulator, config.env.id)
    if "learner" in roles:
        yield check_gpu(config.learner.device)
    bound = [] if TRAIN in given else links.bound_here(config, roles)
    holders = {each: links.find_holder(each.address) for each in bound if links.resolves(each.address)}
    shards = config.replay.shards if TRAIN in given else len({each.number for each in bound if each.server == "replay"})
    if "replay" in roles:
        yield check_memory(config, shards, _resident_bytes(holders.values()))
    network_bytes = sum(array.nbytes for array in network.values())
    yield from check_disks(config, roles, shards, network_bytes, together=TRAIN in given)
    yield check_open_files(config.run.num_actors, roles)
    if TRAIN in given:
        return
    yield check_keys(config, roles, bound)
    opened = links.opened_here(config, roles)
    for each in [*bound, *(each for each in opened if each not in bound)]:
        yield check_endpoint(config, each, holders.get(each), here=each in bound, opens=each in opened)
    yield from check_run(config, network_signature(network) if network else None)


def _resident_bytes(holders: Iterable[links.Holder | None]) -> int:
    """Memory of the replays among them."""
    total = 0
    for pid in {holder.pid for holder in holders if holder is not None and holder.role == "replay"}:
        with suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return total
