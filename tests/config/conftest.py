"""Shared by the tests of settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apex_zmq.errors import ConfigError

TWO_SHARDS = [
    "replay.shards=2",
    "addresses.experience=[tcp://127.0.0.1:1, tcp://127.0.0.1:2]",
    "addresses.priorities=[tcp://127.0.0.1:3, tcp://127.0.0.1:4]",
]


def refusal(load: Callable[[], object]) -> str:
    """The one line of a ConfigError."""
    with pytest.raises(ConfigError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    return message
