"""The result of a check."""

from __future__ import annotations

from typing import Literal, NamedTuple

from apex_zmq.errors import INSTALL

Level = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """The finding of one check, and a remedy unless it is ok."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def failed(name: str, error: Exception) -> Check:
    """A check that has met an error. Messages of this program name the thing, then the remedy."""
    found, _, remedy = str(error).partition("; ")
    return Check(name, "fail", found, remedy or INSTALL)


def line_of(check: Check) -> str:
    """A check as people read it, the remedy below."""
    level = "FAIL" if check.level == "fail" else check.level
    line = f"{level:6}{check.name:14}{check.found}"
    return f"{line}\n{'':20}-> {check.remedy}" if check.remedy else line
