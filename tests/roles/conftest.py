"""Shared by tests that play a role's peers over real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes the test module's own `Peers` under settings given as section__key=value, and closes them."""
    import torch

    made: list[Any] = []
    threads = torch.get_num_threads()

    def make_peers(**changes: Any) -> Any:
        made.append(request.module.Peers(tmp_path, {name.replace("__", "."): value for name, value in changes.items()}))
        return made[-1]

    yield make_peers
    torch.set_num_threads(threads)
    for each in made:
        each.close()
