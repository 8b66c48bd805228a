"""Tables of transitions for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from apex_zmq.types import TRANSITION, Transitions


def make_transitions(count: int, **columns: Any) -> Transitions:
    """`count` transitions with these columns; the others are 0."""
    return with_columns(np.zeros(count, TRANSITION), **columns)


def with_columns(transitions: Transitions, **columns: Any) -> Transitions:
    """A copy with other values in these columns."""
    changed = transitions.copy()
    for name, values in columns.items():
        changed[name] = values
    return changed
