"""What people see of a lane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from apex_zmq.config import settings
from apex_zmq.envs.interface import EnvError, Frame
from apex_zmq.envs.make import make_lanes
from apex_zmq.envs.preprocess import HUD_ROWS, image_frame, screen_rgb


def test_rgb565_is_widened_by_repeating_high_bits() -> None:
    screen = np.array([[0, 0xFFFF, 0xF800], [0x07E0, 0x001F, 0x8410]], np.uint16)
    expected = [[(0, 0, 0), (255, 255, 255), (255, 0, 0)], [(0, 255, 0), (0, 0, 255), (132, 130, 132)]]
    np.testing.assert_array_equal(screen_rgb(screen), expected)


def test_mario_rendering_matches_network_frames_in_color() -> None:
    lanes = make_lanes(settings.Env(frame_height=48, frame_width=60, noop_max=0), 2, 0, render=True)
    pictures = []

    def look(lane: int, frame: Frame) -> None:
        picture = lanes.render(lane)
        assert (picture.shape, picture.dtype.name) == ((224, 240, 3), "uint8")
        np.testing.assert_array_equal(image_frame(picture[HUD_ROWS:], 48, 60), frame)
        pictures.append(picture)

    for lane in (0, 1):
        look(lane, lanes.reset(lane))
    for lane in (0, 0, 1, 0, 1, 1):
        look(lane, lanes.step(lane, 1).frame)
    assert (
        len({picture.tobytes() for picture in pictures}) == 4
    )  # both lanes show the same, each picture its own memory
    assert not np.array_equal(pictures[0][..., 0], pictures[0][..., 2])


def test_mario_reports_action_names_and_decision_rate() -> None:
    lanes = make_lanes(settings.Env(actions="RIGHT_ONLY", frame_skip=6), 1, 0)
    assert lanes.action_names == ("NOOP", "right", "right+A", "right+B", "right+A+B")
    assert lanes.decisions_per_s == pytest.approx(10, abs=0.1)
    listed = make_lanes(settings.Env(actions=(("right",), ("A", "B"))), 1, 0)
    assert listed.action_names == ("right", "A+B")


class Painter(gymnasium.Env[Any, Any]):
    """Draws what it is told to."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 (Gymnasium's own type)
    observation_space, action_space = Box(0, 1, (2,), np.float32), Discrete(2, start=3)
    picture: Any = None

    def __init__(self, **kwargs: Any) -> None:
        self.render_mode = kwargs.get("render_mode")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def render(self) -> Any:
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture if self.render_mode == "rgb_array" else None


class Atari(Painter):
    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE"]


@pytest.fixture(autouse=True)
def painters() -> Iterator[None]:
    kinds = {"Painter-v0": Painter, "Meanings-v0": Atari}
    for name, kind in kinds.items():
        gymnasium.register(name, kind, order_enforce=False)
    yield
    for name in kinds:
        gymnasium.registry.pop(name)


def test_gymnasium_lanes_render_the_picture_of_the_env(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    monkeypatch.setattr(Painter, "picture", picture)
    lanes = make_lanes(settings.Env(id="Painter-v0"), 1, 0, render=True)
    lanes.reset(0)
    drawn = lanes.render(0)
    np.testing.assert_array_equal(drawn, picture)
    assert not np.shares_memory(drawn, picture)
    assert (lanes.action_names, lanes.decisions_per_s) == (("0", "1"), 12.0)
    assert make_lanes(settings.Env(id="Meanings-v0"), 1, 0).action_names == ("NOOP", "FIRE")


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (None, "draws no RGB picture"),
        (np.zeros((4, 5), np.uint8), "draws no RGB picture"),
        (np.zeros((4, 5, 3), np.float32), "draws no RGB picture"),
        (RuntimeError("no\nlibrary"), "cannot be drawn: no library"),
    ],
)
def test_unusable_renderings_are_refused(monkeypatch: pytest.MonkeyPatch, picture: Any, reason: str) -> None:
    monkeypatch.setattr(Painter, "picture", picture)
    lanes = make_lanes(settings.Env(id="Painter-v0"), 1, 0, render=True)
    lanes.reset(0)
    with pytest.raises(EnvError, match=f"Painter-v0 {reason}"):
        lanes.render(0)


def test_cartpole_rendering_shows_the_cart_moving() -> None:
    lanes = make_lanes(settings.Env(id="CartPole-v1", frame_stack=1), 2, 0, render=True)
    cart = []
    for lane in (0, 1):
        lanes.reset(lane)
        for _ in range(8):
            lanes.step(lane, lane)
        picture = lanes.render(lane)
        assert (picture.shape, picture.dtype.name) == ((400, 600, 3), "uint8")
        cart.append(np.argwhere((picture[300] == 0).all(axis=1)).mean())  # the row of the cart, which is black
    assert cart[0] + 10 < cart[1]  # pushed left, and right


def test_atari_renders_color_and_reports_decision_rate() -> None:
    pytest.importorskip("ale_py", reason="no ale-py: pip install 'apex_zmq[atari]'")
    lanes = make_lanes(settings.Env(id="ALE/Breakout-v5", frame_skip=4, noop_max=0, sticky=0.25), 1, 0, render=True)
    lanes.reset(0)
    before = lanes.render(0)
    for _ in range(5):
        lanes.step(0, 2)
    assert (before.shape, before.dtype.name) == ((210, 160, 3), "uint8")
    assert (before[60, :, 0] > before[60, :, 2]).any()  # bricks are red
    assert not np.array_equal(lanes.render(0), before)
    assert (lanes.action_names, lanes.decisions_per_s) == (("NOOP", "FIRE", "RIGHT", "LEFT"), 15.0)


def test_factories_render_if_they_accept_render_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drawn_envs.py").write_text(
        "import gymnasium\n"
        "def with_mode(render_mode=None):\n"
        "    return gymnasium.make('CartPole-v1', render_mode=render_mode)\n"
        "def with_options(**options):\n"
        "    return gymnasium.make('CartPole-v1', **options)\n"
        "def without():\n"
        "    return gymnasium.make('CartPole-v1')\n"
        "def always():\n"
        "    return gymnasium.make('CartPole-v1', render_mode='rgb_array')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("with_mode", "with_options", "always"):
        lanes = make_lanes(settings.Env(id=f"drawn_envs:{name}", frame_stack=1), 1, 0, render=True)
        lanes.reset(0)
        assert lanes.render(0).shape == (400, 600, 3)
    without = settings.Env(id="drawn_envs:without", frame_stack=1)
    make_lanes(without, 1, 0)
    with pytest.raises(EnvError, match="drawn_envs:without cannot be drawn: it must take render_mode='rgb_array'"):
        make_lanes(without, 1, 0, render=True)
