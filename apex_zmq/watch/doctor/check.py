"""The result of a check."""

from __future__ import annotations

from typing import Literal, NamedTuple

from apex_zmq.errors import INSTALL

Level = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """Result of one check. found: the finding. remedy: what to do; empty if the level is ok."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def failed(name: str, error: Exception) -> Check:
    """A failed check from an error of this package, whose message is `finding; remedy`, or from a failed import."""
    found, _, remedy = str(error).partition("; ")
    return Check(name, "fail", found, remedy or INSTALL)


def line_of(check: Check) -> str:
    """Format a check for a terminal, with the remedy on a second line."""
    level = "FAIL" if check.level == "fail" else check.level
    line = f"{level:6}{check.name:14}{check.found}"
    return f"{line}\n{'':20}-> {check.remedy}" if check.remedy else line
