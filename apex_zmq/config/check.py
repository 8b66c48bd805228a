"""Checks across settings. Bounds of a single setting are part of its type in `settings`."""

from __future__ import annotations

import os

from apex_zmq.config.settings import LINK_ADDRESSES, Addresses, Config, addresses_of, tolerance
from apex_zmq.errors import ConfigError

IPC_PATH_BYTES = 107  # of a socket's address on Linux


class SettingError(ConfigError):
    """Valid types, but unusable values. settings: dotted names, to look up the sources of the values."""

    def __init__(self, message: str, settings: tuple[str, ...]) -> None:
        super().__init__(message)
        self.settings = settings


def validate(config: Config, *, addressed: bool = True) -> None:
    """Check settings against each other.

    addressed: whether to check the addresses; a launcher chooses its own.

    Raises:
        SettingError: settings contradict each other, or an address is invalid.
    """
    _check_sizes(config)
    if addressed:
        _check_addresses(config.addresses, config.replay.shards)


def _require(condition: bool, message: str, *settings: str) -> None:
    if not condition:
        raise SettingError(message, settings)


def _check_sizes(config: Config) -> None:
    replay, learner = config.replay, config.learner
    per_shard = replay.capacity // replay.shards
    length, batch = config.actor.segment_length, learner.batch_size
    _require(
        config.agent.n_step <= length,
        f"agent.n_step {config.agent.n_step} exceeds actor.segment_length {length}; lengthen segments",
        "agent.n_step",
        "actor.segment_length",
    )
    _require(
        batch <= per_shard,
        f"learner.batch_size {batch} exceeds the {per_shard} transitions of a shard; raise replay.capacity",
        "learner.batch_size",
        "replay.capacity",
        "replay.shards",
    )
    _require(
        length <= per_shard,
        f"actor.segment_length {length} exceeds the {per_shard} transitions of a shard; raise replay.capacity",
        "actor.segment_length",
        "replay.capacity",
        "replay.shards",
    )
    _require(
        replay.min_size <= replay.capacity - replay.shards * length,
        f"replay.min_size {replay.min_size} exceeds replay.capacity {replay.capacity} less a segment per shard; "
        "lower it",
        "replay.min_size",
        "replay.capacity",
        "replay.shards",
        "actor.segment_length",
    )
    if replay.samples_per_insert is not None:
        needed = batch + replay.samples_per_insert * length
        _require(
            2 * tolerance(config) >= needed,
            f"replay.tolerance {tolerance(config):g} can deadlock: 2 x tolerance must reach "
            f"batch_size + samples_per_insert x segment_length = {needed:g}",
            "replay.tolerance",
            "learner.batch_size",
            "replay.samples_per_insert",
            "actor.segment_length",
        )


def _check_addresses(addresses: Addresses, shards: int) -> None:
    for name in ("experience", "priorities"):
        count = len(getattr(addresses, name))
        _require(
            count == shards,
            f"addresses.{name} lists {count} addresses for replay.shards {shards}; list one per shard",
            f"addresses.{name}",
            "replay.shards",
        )
    _require(
        not (addresses.insecure and addresses.keys),
        "addresses.insecure disables authentication, addresses.keys enables it; set only one of them",
        "addresses.insecure",
        "addresses.keys",
    )
    for name in LINK_ADDRESSES:
        for address in addresses_of(addresses, name):
            try:
                check_address(address)
            except ConfigError as error:
                raise SettingError(str(error), (f"addresses.{name}",)) from None


def check_address(address: str) -> None:
    """Check an address.

    Raises:
        ConfigError: not tcp://host:port or ipc://path, port out of range, path too long, IPv6.
    """
    scheme, separator, rest = address.partition("://")
    if scheme == "ipc" and separator and rest:
        if len(rest.encode()) > IPC_PATH_BYTES:
            raise ConfigError(
                f"address {address}: an ipc path has at most {IPC_PATH_BYTES} bytes; use a shorter directory"
            )
        return
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not colon or not (port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"address {address}: write tcp://host:port (port 1 to 65535) or ipc:///path")
    if host.startswith("["):
        raise ConfigError(f"address {address}: IPv6 is not supported; write a host's name or its IPv4 address")


def check_temporary_directory(directory: str) -> None:
    """Check that apex-train can make its ipc sockets in a directory of temporary files.

    Raises:
        ConfigError: its path is too long.
    """
    room = IPC_PATH_BYTES - len("/apex-12345678/123")
    if len(os.fsencode(directory)) > room:
        raise ConfigError(
            f"the temporary directory {directory} is too long for ipc sockets; set TMPDIR to one of at most {room} "
            "bytes, or pass --tcp"
        )
