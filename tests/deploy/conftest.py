"""Shared by the tests of the files that place, restart and scale the roles."""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import pytest

from apex_zmq.__main__ import PROGRAMS
from apex_zmq.cli import options
from apex_zmq.config.settings import ADDRESSES, Config

Resolve = Callable[[Sequence[str], Mapping[str, str]], Config]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Runs a command line, with variables of the environment, up to where the program's work would begin."""

    class Parsed(Exception):  # noqa: N818 (it is no error)
        """Raised where the program's work would begin; argument: its settings."""

    parse = options.parse

    def parse_args(parser: options.Parser, argv: Sequence[str]) -> argparse.Namespace:
        arguments = argparse.ArgumentParser.parse_args(parser, argv)
        if "overrides" not in arguments:  # a checkpoint brings the settings
            raise Parsed(Config())
        return arguments

    def stop(*arguments: Any, **addressed: Any) -> NoReturn:
        raise Parsed(parse(*arguments, **addressed)[1])

    def resolve(command: Sequence[str], environment: Mapping[str, str]) -> Config:
        for name in ADDRESSES:
            monkeypatch.delenv(f"APEX_{name.upper()}", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(options.Parser, "parse_args", parse_args)
        monkeypatch.setattr(options, "parse", stop)
        name, *arguments = command
        program = pkgutil.resolve_name(PROGRAMS[name.rpartition("/")[2].removeprefix("apex-")])
        with pytest.raises(Parsed) as parsed:
            program(arguments)
        config: Config = parsed.value.args[0]
        return config

    return resolve


def meet(configs: Mapping[str, Config]) -> None:
    """Assert that roles would find each other: what one binds, on all interfaces, the others connect to by port.

    configs: as `resolve` returns them, by role.
    """
    binds = {"experience": "replay", "priorities": "replay", "batches": "learner", "parameters": "learner"}
    binds["status"] = "learner"
    for channel, server in binds.items():
        addresses = {role: getattr(config.addresses, channel) for role, config in configs.items()}
        ports = {role: str(each).rpartition(":")[2] for role, each in addresses.items()}
        assert len(set(ports.values())) == 1, addresses
        assert "0.0.0.0" in str(addresses.pop(server))
        assert all(f"{server}:" in str(each) for each in addresses.values()), addresses
