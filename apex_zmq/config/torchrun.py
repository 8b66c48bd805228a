"""The place of a learner's process among its ranks, as torchrun tells it by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from apex_zmq.errors import ConfigError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REMEDY = "start the learner with torchrun, or unset it"


class Place(NamedTuple):
    """rank, 0 to size - 1; local_rank: among the ranks of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """Return the place of this process; without torchrun, that of a single rank. Empty variables count as unset.

    Raises:
        ConfigError: a variable is missing, no whole number, or out of range.
    """
    size = _whole("WORLD_SIZE", environ, 1, 1)
    if size > 1:
        missing = next((name for name in VARIABLES if name != "LOCAL_WORLD_SIZE" and not environ.get(name)), None)
        if missing is not None:
            raise ConfigError(f"WORLD_SIZE is {size} and {missing} is not set; {REMEDY}")
    rank, local_rank = _whole("RANK", environ, 0, 0), _whole("LOCAL_RANK", environ, 0, 0)
    for name, number in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if number >= size:
            raise ConfigError(
                f"{name} is {number} and WORLD_SIZE is {environ.get('WORLD_SIZE') or 'not set'}; {REMEDY}"
            )
    return Place(rank, size, local_rank)


def _whole(name: str, environ: Mapping[str, str], default: int, least: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ConfigError(f"{name} is {text}, not a whole number of {least} or more; {REMEDY}")
    return int(text)
