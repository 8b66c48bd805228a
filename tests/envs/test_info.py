"""What environments tell of their episodes, and the figures made of it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from apex_zmq.config.settings import Env
from apex_zmq.envs.info import MARIO_STATISTICS, STATISTICS, columns_of, statistics_of
from apex_zmq.envs.make import make_lanes


class Reach(gymnasium.Env[Any, Any]):
    """Its only action succeeds at the second step."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(1, np.float32), 0.0, self.steps == 2, False, {"is_success": np.bool_(self.steps == 2), "x": "y"}


gymnasium.register("Reach-v0", lambda **_: Reach())


def test_is_success_of_gymnasium_is_in_the_info() -> None:
    lanes = make_lanes(Env(id="Reach-v0", frame_stack=1), 1, 0)
    lanes.reset(0)
    assert [lanes.step(0, 0).info for _ in range(2)] == [{"is_success": 0}, {"is_success": 1}]
    lanes.close()


@pytest.mark.parametrize(
    ("name", "figure"),
    [("clear_rate", 0.5), ("stages_cleared_mean", 1.5), ("max_x_mean", 150), ("max_x", 200), ("success_rate", 1)],
)
def test_statistics_use_only_episodes_that_have_the_entry(name: str, figure: float) -> None:
    (statistic,) = (each for each in STATISTICS if each.window == name)
    infos = [
        {"cleared": 1.0, "stages_cleared": 3.0, "max_x": 100.0},
        {"cleared": 0.0, "stages_cleared": 0.0, "max_x": 200.0},
        {"is_success": 1.0, "unheard_of": 9.0},
    ]
    assert statistic.of(infos) == figure
    assert statistic.of([{"unheard_of": 1.0}]) is None


def test_statistic_names_are_unique() -> None:
    for names in (
        [each.window for each in STATISTICS] + [each.total for each in STATISTICS],
        [each.figure for each in STATISTICS],
    ):
        given = [name for name in names if name]
        assert len(set(given)) == len(given)
    assert not any(each.total for each in STATISTICS if each.aggregate == "mean")  # which cannot go on from a figure


def test_mario_has_its_own_statistics_and_columns() -> None:
    assert statistics_of(Env()) == MARIO_STATISTICS
    assert columns_of(Env()) == ("max_x", "cleared", "warped", "loops", "stalled")
    assert columns_of(Env(id="CartPole-v1")) == ()
