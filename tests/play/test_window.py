from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pygame
import pytest

from apex_zmq.cli import main as cli
from apex_zmq.envs.make import make_lanes
from apex_zmq.play import viewer
from apex_zmq.play.viewer import LaneWindow
from apex_zmq.play.window import Window, WindowClosed, WindowError

from ..checkpoints import MARIO

RED = np.full((40, 60, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SDL's video driver without a screen."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    pygame.display.quit()


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("dummy")
def test_a_window_shows_pictures_until_it_is_closed() -> None:
    window = Window(40, 60)
    window.show(RED)
    surface = pygame.display.get_surface()
    assert surface is not None
    assert surface.get_size() == (60, 40)
    assert surface.get_at((59, 39))[:3] == (255, 0, 0)
    window.show(RED[..., ::-1])
    assert surface.get_at((0, 0))[:3] == (0, 0, 255)
    window.close()
    assert not pygame.display.get_init()


@pytest.mark.usefixtures("dummy")
@pytest.mark.parametrize(
    "event", [pygame.event.Event(pygame.QUIT), pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE)]
)
def test_close_button_and_escape_close_the_window(event: pygame.event.Event) -> None:
    window = Window(40, 60)
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_a))
    window.show(RED)
    pygame.event.post(event)
    with pytest.raises(WindowClosed):
        window.show(RED)


@pytest.mark.usefixtures("dummy")
def test_window_limits_the_picture_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(40, 60, pictures_per_s=100.0)
    window.show(RED)
    started = pygame.time.get_ticks()
    for _ in range(20):
        window.show(RED)
    assert pygame.time.get_ticks() - started >= 150


@pytest.mark.usefixtures("no_display")
def test_missing_display_gives_a_one_line_error() -> None:
    with pytest.raises(WindowError, match=r"no display .*set DISPLAY") as refusal:
        Window(40, 60)
    assert "\n" not in str(refusal.value)


def test_missing_pygame_gives_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert cli.train(["--render"]) == 2
    assert capsys.readouterr().err == "apex-train: error: a window needs pygame; pip install pygame-ce\n"


@pytest.mark.usefixtures("dummy")
def test_a_lane_is_shown_until_its_window_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "PICTURES_PER_S", float("inf"))
    lanes = make_lanes(MARIO.env, 2, 0)
    observation, q = np.zeros((4, 48, 60), np.uint8), np.array([0.5, 1.0], np.float32)
    lanes.reset(1)
    shown = LaneWindow(lanes, 1)
    surface = pygame.display.get_surface()
    assert surface is not None
    for number in range(2):
        step = lanes.step(1, 0)
        shown.show(observation, q, 0, step.reward, 0.01, step.stage, step.info)
        pixels = pygame.surfarray.array3d(surface).transpose(1, 0, 2)
        np.testing.assert_array_equal(pixels[:448:2, :480:2], lanes.render(1), err_msg=str(number))
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    for _ in range(2):
        shown.show(observation, q, 0, 0.0, 0.01, "", {})
        assert not pygame.display.get_init()
    shown.close()
    lanes.close()


def test_unreachable_display_gives_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":4321")
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    with pytest.raises(WindowError, match=r"no display .*set DISPLAY") as refusal:
        Window(40, 60)
    assert "\n" not in str(refusal.value)
