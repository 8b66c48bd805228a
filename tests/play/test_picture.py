from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apex_zmq.play.picture import COLUMNS, ROWS, Scene, draw
from apex_zmq.types import UInt8s

RNG = np.random.default_rng(0)
GOLD, BLUE = (240, 180, 40), (80, 140, 220)
SCENE = Scene(
    game=RNG.integers(0, 256, (224, 240, 3), dtype=np.uint8),
    observation=RNG.integers(0, 256, (4, 48, 60), dtype=np.uint8),
    q=np.array([1.0, 3.0, 2.0], np.float32),
    action=1,
    action_names=("right", "right+A", "left"),
    values=[0.0, 2.0, 1.0],
    facts={"return": "1.5", "epsilon": "0.01"},
)


def find(picture: UInt8s, part: UInt8s) -> tuple[int, int]:
    """Row and column at which a part lies in a picture, pixel by pixel."""
    corner = np.all(picture == part[0, 0], axis=2)
    for row, column in np.argwhere(corner):
        if np.array_equal(picture[row : row + part.shape[0], column : column + part.shape[1]], part):
            return int(row), int(column)
    raise AssertionError("not in the picture")


def bars(picture: UInt8s, colour: tuple[int, int, int]) -> list[int]:
    """Lengths of the bars of a colour beside the game, from top to bottom."""
    beside = np.all(picture[:, 588:732] == colour, axis=2).sum(axis=1)
    starts = (beside > 0) & (np.roll(beside, 1) == 0)
    return [int(length) for length in beside[starts]]


def test_the_game_is_shown_pixel_by_pixel() -> None:
    picture = draw(SCENE)
    assert (picture.shape, picture.dtype.name) == ((ROWS, COLUMNS, 3), "uint8")
    np.testing.assert_array_equal(picture[:448, :480], SCENE.game.repeat(2, 0).repeat(2, 1))


def test_the_stacked_inputs_are_shown_oldest_first() -> None:
    picture = draw(SCENE)
    places = [
        find(picture, np.repeat(each.repeat(2, 0).repeat(2, 1)[..., None], 3, axis=2)) for each in SCENE.observation
    ]
    assert places == sorted(places)
    assert len(set(places)) == 4


def test_each_q_value_has_a_bar_and_taken_action_is_gold() -> None:
    picture = draw(SCENE)
    (longest,) = bars(picture, GOLD)
    shortest, middle = bars(picture, BLUE)
    assert shortest < middle < longest
    assert middle - shortest == pytest.approx((longest - shortest) / 2, abs=1)
    assert len(bars(draw(SCENE._replace(action=None)), BLUE)) == 3


def test_a_vector_is_shown_as_bars_from_zero() -> None:
    vector = np.array([[9.0, 9.0, 9.0], [0.5, -1.0, 0.25]], np.float32)
    lengths = bars(draw(SCENE._replace(observation=vector, q=np.zeros(3, np.float32), action=0)), BLUE)[:3]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=3)
    assert lengths[1] == pytest.approx(4 * lengths[2], abs=5)


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"return": "1.6", "epsilon": "0.01"}},
        {"action_names": ("right", "right+A", "right+B")},
        {"values": [0.0, 2.0, 1.1]},
        {"values": [0.0, 2.0]},
        {"q": np.array([1.0, 3.0, 2.5], np.float32)},
    ],
    ids=["facts", "names", "value", "decisions", "q"],
)
def test_scene_fields_change_the_picture(change: dict[str, Any]) -> None:
    assert not np.array_equal(draw(SCENE), draw(SCENE._replace(**change)))


@pytest.mark.parametrize(
    "change",
    [
        {"q": np.zeros(3, np.float32), "values": [0.0]},
        {"q": np.arange(18, dtype=np.float32), "action_names": tuple("abcdefghijklmnopqr")},
        {"q": np.arange(300, dtype=np.float32), "action_names": tuple(map(str, range(300)))},
        {"observation": np.zeros((1, 500), np.float32)},
        {"observation": np.zeros((16, 3, 8, 8), np.uint8)},
        {"observation": np.zeros((1, 240, 256), np.uint8)},
        {"game": np.zeros((1000, 700, 3), np.uint8)},
        {"game": np.zeros((3, 2000, 3), np.uint8)},
        {"values": list(np.sin(np.arange(5000.0)))},
    ],
)
def test_scenes_of_any_size_are_drawn(change: dict[str, Any]) -> None:
    scene = SCENE._replace(**change)
    assert draw(scene).shape == (ROWS, COLUMNS, 3)
    np.testing.assert_array_equal(draw(scene), draw(scene))
