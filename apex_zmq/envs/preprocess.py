"""Screen to frame: luma, HUD rows, area-mean resize, in one pass over the pixels.

Luma is ITU-R BT.601's Y' = 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits. An
output pixel is the mean of the input area that it covers, weighted by overlap
and rounded to nearest (halves up). All arithmetic is on integers, so that
every machine computes the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numba
import numpy as np

from apex_zmq.types import UInt8s, UInt16s

HUD_ROWS = 32  # score and clock, at the top of the 224 rows


def luma(red: UInt8s, green: UInt8s, blue: UInt8s) -> UInt8s:
    """BT.601 luma of 8-bit colours; three arrays of the same shape."""
    weighted = red.astype(np.uint32) * 299 + green.astype(np.uint32) * 587 + blue.astype(np.uint32) * 114
    rounded: UInt8s = ((weighted + 500) // 1000).astype(np.uint8)
    return rounded


def rgb565_luma() -> UInt8s:
    """[65536] luma of every RGB565 value."""
    rgb = screen_rgb(np.arange(1 << 16, dtype=np.uint16))
    return luma(rgb[:, 0], rgb[:, 1], rgb[:, 2])


def screen_rgb(screen: UInt16s) -> UInt8s:
    """[..., 3] 8-bit colours of RGB565 values of any shape, widened by repeating their high bits."""
    red, green, blue = screen >> 11, screen >> 5 & 63, screen & 31
    wide = np.stack([red << 3 | red >> 2, green << 2 | green >> 4, blue << 3 | blue >> 2], axis=-1)
    rgb: UInt8s = wide.astype(np.uint8)
    return rgb


_RGB565_LUMA = rgb565_luma()
_GRAY = np.arange(256, dtype=np.uint8)


def _shrink(pixels: UInt8s | UInt16s, table: UInt8s, black_rows: int, out: UInt8s) -> None:
    rows, columns = pixels.shape
    height, width = out.shape
    # Lengths are in units that divide both grids: a source row is `height` units
    # high and an output row `rows`; columns likewise.
    strip = np.empty(columns, np.int64)
    area = rows * columns
    for i in range(height):
        top, bottom = i * rows, (i + 1) * rows
        strip[:] = 0
        for row in range(max(top // height, black_rows), (bottom - 1) // height + 1):
            overlap = min(bottom, (row + 1) * height) - max(top, row * height)
            for column in range(columns):
                strip[column] += overlap * table[pixels[row, column]]
        for j in range(width):
            left, right = j * columns, (j + 1) * columns
            total = 0
            for column in range(left // width, (right - 1) // width + 1):
                total += (min(right, (column + 1) * width) - max(left, column * width)) * strip[column]
            out[i, j] = (total + area // 2) // area


_shrink_kernel: Callable[[UInt8s | UInt16s, UInt8s, int, UInt8s], None] = numba.njit(nogil=True, cache=True)(_shrink)


def screen_frame(
    screen: UInt16s,
    hud: Literal["crop", "mask", "keep"],
    height: int,
    width: int,
    previous: UInt16s | None = None,
) -> UInt8s:
    """Convert an emulator's screen to a frame.

    Args:
        screen: [224, 240] RGB565.
        hud: treatment of the 32 rows of the HUD: crop, mask (black) or keep.
        height: rows of the frame.
        width: columns of the frame.
        previous: an earlier screen; if given, each pixel takes the larger luma of the two.

    Returns:
        uint8 [height, width], newly allocated.
    """
    out = np.empty((height, width), np.uint8)
    first = HUD_ROWS if hud == "crop" else 0
    black_rows = HUD_ROWS if hud == "mask" else 0
    if previous is None:
        _shrink_kernel(screen[first:], _RGB565_LUMA, black_rows, out)
    else:
        brighter = np.maximum(_RGB565_LUMA[screen[first:]], _RGB565_LUMA[previous[first:]])
        _shrink_kernel(brighter, _GRAY, black_rows, out)
    return out


def show_buttons(frame: UInt8s, held: Sequence[bool]) -> None:
    """Draw one square per button into the upper left corner of a [height, width] frame: 255 if held, else 0.

    The side of a square is a twelfth of the height.
    """
    side = max(1, frame.shape[0] // 12)
    for index, white in enumerate(held):
        frame[:side, index * side : (index + 1) * side] = 255 if white else 0


def image_frame(image: UInt8s, height: int, width: int) -> UInt8s:
    """Convert an image observation to a frame.

    Args:
        image: [H, W] or [H, W, 1] gray, or [H, W, 3] RGB.
        height: rows of the frame.
        width: columns of the frame.

    Returns:
        uint8 [height, width], newly allocated.
    """
    if image.ndim == 3:
        image = luma(image[..., 0], image[..., 1], image[..., 2]) if image.shape[2] == 3 else image[..., 0]
    out = np.empty((height, width), np.uint8)
    _shrink_kernel(np.ascontiguousarray(image), _GRAY, 0, out)
    return out
