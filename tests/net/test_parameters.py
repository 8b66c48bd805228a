from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from apex_zmq.net import parameters
from apex_zmq.net.parameters import ParameterFollower, ParameterPublisher

from ..channels import PATIENCE_S, SIGNATURE, links_of, publisher_of
from ..channels import parameters as publication


def test_lower_incarnation_is_followed_once_the_former_is_silent(
    address: str, opened: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a run is resumed from an early checkpoint on a host whose clock is behind."""
    monkeypatch.setattr(parameters, "SILENT_S", 1.0)
    former: ParameterPublisher = opened(publisher_of(address))
    follower: ParameterFollower = opened(ParameterFollower(links_of(parameters=address), None, SIGNATURE))
    former.publish(replace(publication(3), learner_incarnation=7))
    deadline = time.monotonic() + PATIENCE_S
    while follower.newest is None:
        former.serve()
        follower.poll(0.01)
        assert time.monotonic() < deadline
    former.publish(replace(publication(9), learner_incarnation=5))
    heard_at = follower.received_at
    while follower.newest.learner_incarnation == 7:
        former.serve()
        former.publish(replace(publication(9), learner_incarnation=5))
        follower.poll(0.01)
        assert time.monotonic() < deadline
    assert (follower.newest.learner_incarnation, follower.newest.version) == (5, 9)
    assert follower.received_at - heard_at > 1.0
