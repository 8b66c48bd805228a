"""A window on the screen, through SDL (pygame)."""

from __future__ import annotations

import os
import sys

from apex_zmq.errors import UserError
from apex_zmq.types import UInt8s

TITLE = "apex_zmq"
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


class WindowError(UserError):
    """A window that cannot be opened; the message names the remedy."""


class WindowClosed(Exception):  # noqa: N818 (an event, no error)
    """Somebody has closed the window."""


class Window:
    """Shows RGB pictures uint8 [H, W, 3], all of one size, at a rate per second at most (0: any).

    For the main thread alone.

    Raises:
        WindowError: pygame or a display is missing.
    """

    def __init__(self, rows: int, columns: int, pictures_per_s: float = 0.0) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
        except ImportError:
            raise WindowError("a window needs pygame; pip install pygame-ce") from None
        if sys.platform == "linux" and not any(os.environ.get(name) for name in _DISPLAYS):
            raise WindowError("no display to open a window on; set DISPLAY")
        self._pygame = pygame
        self._clock = pygame.time.Clock()
        self._rate = pictures_per_s
        try:
            pygame.display.init()
            # What SDL falls back to by itself, where it finds no display, draws nowhere.
            if pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
                raise pygame.error("SDL found none")
            self._screen = pygame.display.set_mode((columns, rows))
        except pygame.error as error:
            pygame.display.quit()
            raise WindowError(f"no display to open a window on, {error}; set DISPLAY") from None
        pygame.display.set_caption(TITLE)

    def show(self, picture: UInt8s) -> None:
        """Show a picture.

        Raises:
            WindowClosed: by its button, or Escape.
        """
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                raise WindowClosed
        rows, columns, _ = picture.shape
        self._screen.blit(pygame.image.frombuffer(picture.tobytes(), (columns, rows), "RGB"), (0, 0))
        pygame.display.flip()
        self._clock.tick(self._rate)

    def close(self) -> None:
        """Close it."""
        self._pygame.display.quit()
