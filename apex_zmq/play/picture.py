"""Draw one decision: the screen, the network's inputs, its Q-values and the value over the episode (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from apex_zmq.types import Float32s, UInt8s

ROWS, COLUMNS = 640, 800

_Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
_GAME: _Box = (0, 0, 480, 448)
_CURVE: _Box = (8, 456, 472, 632)
_FACTS: _Box = (488, 8, 792, 88)
_INPUTS: _Box = (488, 96, 792, 340)
_Q_VALUES: _Box = (488, 348, 792, 632)
_LINE = 20  # rows of a line of text, at most
_NAME_COLUMNS, _NUMBER_COLUMNS = 100, 60
_FONT = ImageFont.load_default(13)
_BLACK, _GRAY, _WHITE, _BLUE, _GOLD = (16, 16, 20), (90, 90, 98), (235, 235, 235), (80, 140, 220), (240, 180, 40)


class Scene(NamedTuple):
    """The data shown for one decision."""

    game: UInt8s  # RGB [H, W, 3]
    observation: npt.NDArray[Any]  # [s, H, W], [s, C, H, W] or [s, D]: the network's input
    q: Float32s  # [A] Q of each action
    action: int | None  # the action taken; None after the end of the episode
    action_names: Sequence[str]  # A
    values: Sequence[float]  # max_a Q of the episode's decisions so far, oldest first
    facts: Mapping[str, str]  # such as "return": "12.3"; four lines at most


def draw(scene: Scene) -> UInt8s:
    """Draw a scene, uint8 RGB [640, 800, 3]."""
    canvas = Image.new("RGB", (COLUMNS, ROWS), _BLACK)
    pen = ImageDraw.Draw(canvas)
    _paste(canvas, scene.game, _GAME)
    for line, (name, fact) in enumerate(scene.facts.items()):
        pen.text((_FACTS[0], _FACTS[1] + line * _LINE), f"{name}  {fact}", _WHITE, _FONT)
    if scene.observation.ndim > 2:
        _tile(canvas, scene.observation.reshape(-1, *scene.observation.shape[-2:]), _INPUTS)
    else:
        newest = scene.observation[-1]
        _bars(pen, _INPUTS, [f"input {index}" for index in range(len(newest))], newest, 0.0, None)
    _bars(pen, _Q_VALUES, [f"Q {name}" for name in scene.action_names], scene.q, float(scene.q.min()), scene.action)
    _curve(pen, _CURVE, scene.values)
    return np.array(canvas)


def _paste(canvas: Image.Image, pixels: UInt8s, box: _Box) -> None:
    """Paste an image, centred and as large as the box allows; enlarged by whole factors, so that pixels stay square."""
    left, top, right, bottom = box
    image = Image.fromarray(pixels)
    scale = min((right - left) / image.width, (bottom - top) / image.height)
    scale = math.floor(scale) if scale >= 1 else scale
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    canvas.paste(resized, ((left + right - size[0]) // 2, (top + bottom - size[1]) // 2))


def _tile(canvas: Image.Image, images: UInt8s, box: _Box) -> None:
    """Paste images [K, H, W] in rows from left to right, oldest first."""
    left, top, right, bottom = box
    across = math.ceil(math.sqrt(len(images)))
    down = math.ceil(len(images) / across)
    width, height = (right - left) // across, (bottom - top) // down
    for index, image in enumerate(images):
        x, y = left + index % across * width, top + index // across * height
        _paste(canvas, image, (x + 1, y + 1, x + width - 1, y + height - 1))


def _bars(
    pen: ImageDraw.ImageDraw,
    box: _Box,
    names: Sequence[str],
    values: Float32s,
    origin: float,
    chosen: int | None,
) -> None:
    """Draw a bar from `origin` for each value, the chosen one highlighted, as many as fit the box."""
    left, top, right, bottom = box
    line = max(12, min(_LINE, (bottom - top) // len(names)))
    first, last = left + _NAME_COLUMNS, right - _NUMBER_COLUMNS
    low, high = min(origin, float(values.min())), max(origin, float(values.max()))
    per_unit = (last - first) / (high - low) if high > low else 0.0
    for index in range(min(len(names), (bottom - top) // line)):
        y, value = top + index * line, float(values[index])
        colour = _GOLD if index == chosen else _BLUE
        ends = sorted((first + (value - low) * per_unit, first + (origin - low) * per_unit))
        pen.rectangle((ends[0], y + 2, ends[1], y + line - 3), colour)
        pen.text((left, y), names[index][:16], _GOLD if index == chosen else _WHITE, _FONT)
        pen.text((right, y), f"{value:.3f}", _WHITE, _FONT, anchor="ra")


def _curve(pen: ImageDraw.ImageDraw, box: _Box, values: Sequence[float]) -> None:
    """Plot values over decisions, scaled to their range; the newest value and the range are printed above."""
    left, top, right, bottom = box
    low, high = min(values), max(values)
    pen.text((left, top), f"value {values[-1]:.3f}", _WHITE, _FONT)
    pen.text((right, top), f"{low:.3f} to {high:.3f}", _GRAY, _FONT, anchor="ra")
    top += _LINE
    pen.rectangle((left, top, right, bottom), outline=_GRAY)
    per_decision = (right - left) / max(len(values) - 1, 1)
    per_unit = (bottom - top) / (high - low) if high > low else 0.0
    points = [(left + index * per_decision, bottom - (value - low) * per_unit) for index, value in enumerate(values)]
    pen.line(points if len(points) > 1 else points * 2, _BLUE, 2)
