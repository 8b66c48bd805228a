"""What torchrun, or a cluster's shell, left in the environment."""

from __future__ import annotations

import pytest

from apex_zmq.cli import main
from apex_zmq.config.torchrun import Place, place

from .conftest import refusal

RENDEZVOUS = {"MASTER_ADDR": "host", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Place()),
        ({"RANK": "", "WORLD_SIZE": ""}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **RENDEZVOUS}, Place(3, 4, 1)),
    ],
)
def test_the_place_is_read_from_the_environment(environ: dict[str, str], expected: Place) -> None:
    assert place(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "1"}, "RANK is 1 and WORLD_SIZE is not set; start"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **RENDEZVOUS}, "RANK is 2 and WORLD_SIZE is 2; start"),
        ({"RANK": "x"}, "RANK is x, not a whole number of 0 or more; start"),
        ({"RANK": "-1"}, "RANK is -1, not a whole number"),
        ({"RANK": "\u00b2"}, "RANK is \u00b2, not a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, not a whole number of 1 or more; start"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK is not set; start the learner with torchrun, or unset it"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is 2 and MASTER_ADDR is not set"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1 and WORLD_SIZE is not set"),
    ],
)
def test_an_impossible_place_is_refused_in_one_line(environ: dict[str, str], message: str) -> None:
    assert message in refusal(lambda: place(environ))


def test_the_learner_refuses_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main.learner([]) == 2
    assert capsys.readouterr().err.startswith("apex-learner: error: RANK is 1 and WORLD_SIZE is not set")
