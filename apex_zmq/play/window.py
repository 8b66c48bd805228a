"""A window on the screen, through SDL (pygame)."""

from __future__ import annotations

import os
import sys

from apex_zmq.errors import UserError
from apex_zmq.types import UInt8s

TITLE = "apex_zmq"
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


class WindowError(UserError):
    """A window that cannot be opened."""


class WindowClosed(Exception):  # noqa: N818 (an event, not an error)
    """The user has closed the window."""


class Window:
    """Shows RGB pictures uint8 [H, W, 3], all of one size; must be used from the main thread.

    pictures_per_s: maximum rate; 0: unlimited.

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
            raise WindowError("no display for a window; set DISPLAY")
        self._pygame = pygame
        self._clock = pygame.time.Clock()
        self._rate = pictures_per_s
        try:
            pygame.display.init()
            # Without a display SDL falls back to a driver without output.
            if pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
                raise pygame.error("SDL found no display")
            self._screen = pygame.display.set_mode((columns, rows))
        except pygame.error as error:
            pygame.display.quit()
            raise WindowError(f"no display for a window ({error}); set DISPLAY") from None
        pygame.display.set_caption(TITLE)

    def show(self, picture: UInt8s) -> None:
        """Show a picture.

        Raises:
            WindowClosed: the user closed the window by its button or Escape.
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
        """Close the window."""
        self._pygame.display.quit()
