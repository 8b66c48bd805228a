"""Shared by the tests of the files that place, restart and scale the roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from apex_zmq.cli import main as cli
from apex_zmq.cli import program
from apex_zmq.config.settings import ADDRESSES, Config

Resolve = Callable[[Sequence[str], Mapping[str, str]], Config]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Runs a command line, with variables of the environment, up to where the program's work would begin."""
    main = program.main

    def resolve(command: Sequence[str], environment: Mapping[str, str]) -> Config:
        found: list[Config] = []

        def keep(_: object, config: Config) -> int:
            found.append(config)
            return 0

        for name in ADDRESSES:
            monkeypatch.delenv(f"APEX_{name.upper()}", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            program, "main", lambda parser, _, argv, *more, **options: main(parser, keep, argv, *more, **options)
        )
        name, *arguments = command
        assert cli.PROGRAMS[name.rpartition("/")[2].removeprefix("apex-")](arguments) == 0
        return found[0]

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
